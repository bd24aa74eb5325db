"""What the folder of a run says to who finds it: README.md with the file to deploy, and a picture of the results."""

from __future__ import annotations

import io
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from cxr_compress.device.modelfile import ModelFile
from cxr_compress.device.modelinfo import INTENDED_USE
from cxr_compress.errors import DataError
from cxr_compress.files import write_bytes, write_text
from cxr_compress.recipe import Recipe
from cxr_compress.report.cards import render_delivered_card
from cxr_compress.report.report import is_labeled, render_report
from cxr_compress.report.run_page import render_run_page

REPORT, README, PICTURE, PAGE = "report.json", "README.md", "report.png", "report.html"
_PLAN, _MANIFESTS = "plan.json", "manifests"

_TEMPLATE = """\
# {name}

**{intended_use}**

| what | where |
|---|---|
| the file to deploy | `{file}`, {file_bytes:,} bytes, sha256 `{sha256}` |
| its model card | `{card}`: what it was trained and measured on, and what it is not for |
| the results | below, and in `report.json` |
{page}{picture}| the choices | `recipe.json`; `cxr_compress --recipe=recipe.json` with other flags changes them |

On the device:

    pip install 'cxr-compress[litert]'
    cxr_verify --model={file}
    cxr_predict --model={file} IMAGE

## What was gained, and what it cost

```
{results}
```

## What else is here

`*_fp32.tflite` and `*_int8.tflite` are the original model and the compressed one's float twin, to compare with.
`*.keras` are the models after each stage, `plan.json` is which filters stayed, `manifests/` is what decided each stage:
the same command goes on from them, and removing them only means making them again.
"""


def write_run_folder(folder: Path, report: Mapping[str, Any], model: ModelFile) -> list[str]:
    """Write what people read of a run: README.md, card, and, where the extra `report` is there, picture and page.

    Args:
        folder: of the run.
        report: what `read_report` gave of it.
        model: the compressed file, the last row of the report.

    Returns:
        The names of what was written.

    Raises:
        DataError: the report is of another run, or a file beside it cannot be read.
        CompressionError: the folder cannot be written.
    """
    card = card_name(report["rows"][-1]["file"])
    write_text(folder / card, render_delivered_card(report, model, file_name=report["rows"][-1]["file"]))
    written = [card]
    try:
        write_bytes(folder / PICTURE, draw_report(report))
        written.append(PICTURE)
        write_text(folder / PAGE, render_page_of_run(folder, report, model))
        written.append(PAGE)
    except ModuleNotFoundError:
        pass  # the extra `report`
    names = {"picture": PICTURE if PICTURE in written else "", "page": PAGE if PAGE in written else ""}
    write_text(folder / README, render_readme(report, model, card=card, **names))
    return [README, *written]


def render_page_of_run(folder: Path, report: Mapping[str, Any], model: ModelFile) -> str:
    """`render_run_page` with plan and manifests of the folder.

    Raises:
        DataError: one of them cannot be read.
        ModuleNotFoundError: jinja2 or matplotlib is not installed (extra `report`).
    """
    return render_run_page(
        report, model, plan=_read(folder / _PLAN, "groups", "before", "after"), stages=_stages(folder, report)
    )


def card_name(file: str) -> str:
    """The name of the card of a .tflite."""
    return Path(file).with_suffix(".md").name


def _stages(folder: Path, report: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The manifests of a run, in the order in which its stages ran."""
    order = list(report["facts"].get("seconds", {}))
    paths = sorted((folder / _MANIFESTS).glob("*.json"))
    found = [manifest for path in paths if (manifest := _read(path, "stage", "files"))]
    # Not of the stage that wrote this page: a page cannot hold its own hash.
    read = [manifest for manifest in found if PAGE not in manifest["files"]]
    return sorted(read, key=lambda one: order.index(one["stage"]) if one["stage"] in order else len(order))


def _read(path: Path, *keys: str) -> dict[str, Any] | None:
    """A JSON object with these keys; None where there is no file."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        raise DataError(f"{path.name} of the run cannot be read ({error}): run the same command again") from error
    if not isinstance(found, dict) or not set(keys) <= set(found):
        expected = f"expected an object with {', '.join(keys)}"
        raise DataError(f"{path.name} of the run cannot be read ({expected}): run the same command again")
    return found


def render_readme(report: Mapping[str, Any], model: ModelFile, *, card: str, picture: str = "", page: str = "") -> str:
    """The README.md of a run's folder.

    Args:
        report: what `read_report` gave.
        model: the compressed file, the last row of the report.
        card: name of its model card.
        picture: name of the picture of the results; "" for none.
        page: name of the page for people who decide; "" for none.
    """
    return _TEMPLATE.format(
        name=model.info.model_name,
        intended_use=report["intended_use"],
        file=report["rows"][-1]["file"],
        file_bytes=model.file_bytes,
        sha256=model.sha256,
        card=card,
        page=f"| the same for people who decide | `{page}`: open it in a browser, or print it |\n" if page else "",
        picture=f"| their picture | `{picture}` |\n" if picture else "",
        results=render_report(report),
    )


_SEARCH = """\
# Search for a smaller model

**{intended_use}**

| what | where |
|---|---|
| the model that was found | `{folder}/`: its README.md names the file to deploy |
| every point that was tried | `search.json`{picture} |

The same command goes on from here; other bounds evaluate anew what is known already.
"""
_NONE = {"value": 0.0, "low": 0.0, "high": 0.0}
_COLORS = ("#8a97a6", "#5b8db8", "#1f5f99")
_INK = "#22303c"
_DPI = 130


def render_search_readme(folder: str, *, picture: str = "") -> str:
    """The README.md of a search.

    Args:
        folder: of the model that was found, below that of the search.
        picture: name of the picture of all points; "" for none.
    """
    shown = f", as a picture in `{picture}`" if picture else ""
    return _SEARCH.format(intended_use=INTENDED_USE, folder=folder, picture=shown)


def draw_report(report: Mapping[str, Any]) -> bytes:
    """Draw bytes, time per image and AUROC of each file of a run side by side, as a PNG; without labels agreement.

    Raises:
        ModuleNotFoundError: matplotlib is not installed (extra `report`).
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    rows, dataset = report["rows"], report["dataset"]
    compressed = f"compressed, {Recipe.from_dict(report['facts']['recipe']).export.quant_type}"
    names = [*("original, float32", "original, int8")[: len(rows) - 1], compressed]
    # A figure of its own, not pyplot's: nothing global is set up, so a notebook's settings stay as they are.
    figure = Figure(figsize=(11, 2.6), dpi=_DPI, layout="constrained")
    FigureCanvasAgg(figure)
    panels = figure.subplots(1, 3, sharey=True)
    _draw_bars(panels[0], names, [row["tflite_bytes"] / 1e3 for row in rows], "file size, kB", "{:,.0f} kB")
    _draw_bars(panels[1], names, [row["latency"]["p50_ms"] for row in rows], "time per image, ms", "{:.2f} ms")
    if is_labeled(report):
        _draw_intervals(panels[2], [row["evaluation"]["mean_auroc"] for row in rows], "AUROC on test, 95 % interval")
    else:
        # The original's distance to itself; what the others have moved.
        apart = [row["agreement"]["logit_distance"] if row["agreement"] else _NONE for row in rows]
        _draw_intervals(panels[2], apart, "logits apart, in their spread")
    panels[0].invert_yaxis()
    held_out = "test images" if is_labeled(report) else "images held out, without labels"
    what = "SYNTHETIC images" if dataset["synthetic"] else f"{dataset['splits']['test']['images']} {held_out}"
    figure.suptitle(f"{rows[0]['name'].removesuffix('_fp32')} on {dataset['name']}, {what}", color=_INK, fontsize=11)
    picture = io.BytesIO()
    # No date: the same report gives the same bytes.
    figure.savefig(picture, format="png", metadata={"Software": None})
    return picture.getvalue()


def _draw_bars(panel: Any, names: Sequence[str], values: Sequence[float], title: str, form: str) -> None:
    panel.barh(range(len(values)), values, color=_COLORS[-len(values) :], height=0.62)
    for place, value in enumerate(values):
        panel.text(value, place, " " + form.format(value), va="center", color=_INK, fontsize=9)
    panel.set_yticks(range(len(names)), names, color=_INK)
    panel.set_xlim(0, max(values) * 1.3)
    _tidy(panel, title)


def _draw_intervals(panel: Any, intervals: Sequence[Mapping[str, float | None]], title: str) -> None:
    """A measure as a point with its interval: bars that start at 0 would hide every difference of an AUROC."""
    for place, (measured, color) in enumerate(zip(intervals, _COLORS[-len(intervals) :], strict=True)):
        if measured["value"] is None:
            continue
        if measured["low"] is not None:
            ends = [measured["low"], measured["high"]]
            panel.plot(ends, [place, place], color=color, linewidth=3, solid_capstyle="round")
        panel.plot(measured["value"], place, "o", color=color, markersize=8)
        panel.text(measured["value"], place - 0.3, f"{measured['value']:.3f}", ha="center", color=_INK, fontsize=9)
    _tidy(panel, title)


def _tidy(panel: Any, title: str) -> None:
    panel.set_title(title, fontsize=10, color=_INK, loc="left")
    panel.spines[["top", "right", "left"]].set_visible(False)
    panel.tick_params(axis="y", length=0)
    panel.tick_params(axis="x", labelsize=8, colors=_INK)
    panel.locator_params(axis="x", nbins=5)
