"""The table and the picture of a plan, from plain data: sums, names that fit, and what is drawn."""

from __future__ import annotations

import io
import subprocess
import sys
from typing import Any

import numpy as np
import pytest

from cxr_compress.device.modelinfo import INTENDED_USE
from cxr_compress.report.plots import HEADERS, OTHERS, TOTAL, draw_plan, name_stretches, plan_rows, plan_title

DENSE = ["conv1/conv"] + [
    f"conv{stage}_block{block}_{part}_conv"
    for stage, blocks in ((2, 6), (3, 12), (4, 24), (5, 16))
    for block in range(1, blocks + 1)
    for part in (1, 2)
]


def layer(path: str, filters: int, kept: int, *, protected: bool = False, has_filters: bool = True) -> dict[str, Any]:
    """A layer of ten params and a thousand MACs per filter; without filters of its own, it has no MACs."""
    macs = 1000 if has_filters else 0
    return {
        "path": path,
        "class": "Conv2D" if has_filters else "BatchNormalization",
        "groups": [path],
        "protected": protected,
        "has_filters": has_filters,
        "filters_before": filters,
        "filters_kept": kept,
        "params_before": 10 * filters,
        "params_after": 10 * kept,
        "macs_before": macs * filters,
        "macs_after": macs * kept,
    }


def plan_of(layers: list[dict[str, Any]]) -> dict[str, Any]:
    def total(side: str) -> dict[str, int]:
        return {name: sum(layer[f"{name}_{side}"] for layer in layers) for name in ("params", "macs")}

    return {"layers": layers, "before": total("before"), "after": total("after")}


@pytest.fixture
def small() -> dict[str, Any]:
    norm = layer("norm", 8, 4, has_filters=False)
    return plan_of([layer("a", 8, 4), norm, layer("b", 16, 12), layer("logits", 3, 3, protected=True)])


def pixels(png: bytes) -> np.ndarray:
    """(height, width, 3) values from 0 to 255."""
    from matplotlib.image import imread

    return np.round(imread(io.BytesIO(png), format="png")[..., :3] * 255).astype(int)


def share_of(image: np.ndarray, color: str) -> float:
    """Share of the pixels of exactly this color ("#rrggbb")."""
    wanted = [int(color[place : place + 2], 16) for place in (1, 3, 5)]
    return float((image == wanted).all(axis=-1).mean())


def test_plan_rows_name_every_layer_with_filters_and_end_in_the_sums(small):
    rows = [dict(zip(HEADERS, row, strict=True)) for row in plan_rows(small)]
    assert [row["layer"] for row in rows] == ["a", "b", "logits", OTHERS, TOTAL]
    assert (rows[0]["filters"], rows[0]["kept"], rows[0]["removed"], rows[0]["removed_percent"]) == (8, 4, 4, 50.0)
    assert (rows[3]["params"], rows[3]["params_after"], rows[3]["macs"]) == (80, 40, 0)
    assert rows[4]["removed_percent"] == round(100 * (4 + 4) / (8 + 16 + 3), 1)
    for column in ("params", "params_after", "macs", "macs_after"):
        assert sum(row[column] for row in rows[:-1]) == rows[-1][column]
    for column in ("filters", "kept", "removed"):
        assert sum(row[column] for row in rows[:-2]) == rows[-1][column]


def test_plan_title_says_before_and_after():
    before, after = {"macs": 2_833_152_000, "params": 7_051_854}, {"macs": 1_416_576_000, "params": 999}
    expected = "MACs 2,833 M -> 1,417 M (50.0 %), params 7.05 M -> 999 (0.0 %)"
    assert plan_title({"before": before, "after": after}) == expected


def test_name_stretches_of_a_densenet_are_its_stages():
    names = [*DENSE[:13], "pool2_conv", *DENSE[13:], "logits"]
    stretches = name_stretches(names)
    assert [label for label, _, _ in stretches] == ["conv1", "conv2", "pool2", "conv3", "conv4", "conv5", "logits"]
    assert [size for _, _, size in stretches] == [1, 12, 1, 24, 48, 32, 1]
    assert [start for _, start, _ in stretches] == [0, 1, 13, 14, 38, 86, 118]


@pytest.mark.parametrize(
    "names",
    [
        [f"conv2d_{number}" for number in range(94)],  # Keras's own numbers: nothing in common after "conv2d"
        [f"{'ab'[number % 2]}{number}" for number in range(300)],
        [f"backbone/stage{number // 10}_conv{number}" for number in range(90)],
    ],
)
def test_name_stretches_are_few_cover_all_bars_and_tell_them_apart(names):
    stretches = name_stretches(names)
    assert 3 <= len(stretches) <= 24
    assert [start for _, start, _ in stretches] == np.cumsum([0, *(size for _, _, size in stretches)])[:-1].tolist()
    assert sum(size for _, _, size in stretches) == len(names)


def test_draw_plan_is_a_png_with_kept_removed_and_protected_parts(small):
    png = draw_plan(small, "toy")
    assert png.startswith(b"\x89PNG\r\n\x1a\n")
    image = pixels(png)
    light, dark, protected = (share_of(image, color) for color in ("#c6d8ea", "#1f5a92", "#9a9a9a"))
    assert min(light, dark, protected) > 0.01
    # Where more is kept there is more dark and less light; where nothing is protected there is no gray.
    more = plan_of([layer("a", 8, 7), layer("b", 16, 15), layer("logits", 3, 3)])
    other = pixels(draw_plan(more, "toy"))
    assert share_of(other, "#1f5a92") > dark
    assert share_of(other, "#c6d8ea") < light
    # The edges of black letters are gray too.
    assert share_of(other, "#9a9a9a") < 0.001


def test_draw_plan_says_title_and_intended_use_and_gives_the_same_bytes(small, monkeypatch):
    from matplotlib.figure import Figure

    said: list[str] = []
    for method in ("suptitle", "supxlabel"):
        original = getattr(Figure, method)

        def spy(figure: Any, text: str, *rest: Any, _original: Any = original, **options: Any) -> Any:
            said.append(text)
            return _original(figure, text, *rest, **options)

        monkeypatch.setattr(Figure, method, spy)
    first = draw_plan(small, "toy")
    assert said == [f"toy\n{plan_title(small)}", INTENDED_USE]
    assert draw_plan(small, "toy") == first


def test_draw_plan_stays_a_page_wide_however_many_layers():
    widths = [pixels(draw_plan(plan_of([layer(name, 8, 4) for name in DENSE * times]))).shape[1] for times in (1, 3)]
    assert widths[0] <= widths[1] == 16 * 150


def test_plan_view_loads_no_framework_and_no_matplotlib_before_it_draws():
    code = (
        "import sys, cxr_compress.report.plots\n"
        "assert not {'matplotlib', 'tensorflow', 'tf_keras', 'cxr_compress.structured'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_draw_plan_without_matplotlib_names_it(small, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(ModuleNotFoundError, match="matplotlib"):
        draw_plan(small)
