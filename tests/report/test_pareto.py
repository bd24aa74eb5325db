"""The front against trying all pairs, and the picture: what is in it, and what it says."""

from __future__ import annotations

import io
import math
import subprocess
import sys
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cxr_compress.device.modelinfo import INTENDED_USE
from cxr_compress.errors import DataError
from cxr_compress.report.plots import ParetoPoint, draw_pareto, pareto_front

POINTS = st.lists(st.tuples(st.integers(1, 6), st.one_of(st.integers(0, 6).map(float), st.just(math.nan))), max_size=12)


def beats(one: tuple[float, float], other: tuple[float, float]) -> bool:
    return one[0] <= other[0] and one[1] >= other[1] and one != other


@given(POINTS)
def test_pareto_front_is_what_no_pair_beats(points):
    front = pareto_front([size for size, _ in points], [value for _, value in points])
    known = [point for point in points if not math.isnan(point[1])]
    expected = {point for point in known if not any(beats(other, point) for other in known)}
    assert {points[index] for index in front} == expected
    assert len(front) == len(expected), "of equal points one"


@given(POINTS)
def test_pareto_front_rises_in_size_and_value(points):
    front = [points[index] for index in pareto_front([p[0] for p in points], [p[1] for p in points])]
    assert all(a[0] < b[0] and a[1] < b[1] for a, b in pairwise(front))


@given(POINTS, st.randoms(use_true_random=False))
def test_pareto_front_is_the_same_in_any_order(points, random):
    def values_of(given: list[tuple[float, float]]) -> set[tuple[float, float]]:
        return {given[index] for index in pareto_front([p[0] for p in given], [p[1] for p in given])}

    shuffled = list(points)
    random.shuffle(shuffled)
    assert values_of(shuffled) == values_of(points)


def test_pareto_front_of_nothing_is_nothing():
    assert pareto_front([], []) == []


TRIED = [ParetoPoint(f"m{share}", 7e6 * share, 0.95 + 0.02 * share, 0.94, 0.98) for share in (0.1, 0.2, 0.5)]
WINNER = ParetoPoint("best", 8e5, 0.958, 0.94, 0.97, "recovered in full", winner=True)
ORIGINAL = ParetoPoint("original, float32", 28e6, 0.967, 0.952, 0.979)


def pixels(png: bytes) -> np.ndarray:
    """(height, width, 3) values from 0 to 255."""
    from matplotlib.image import imread

    return np.round(imread(io.BytesIO(png), format="png")[..., :3] * 255).astype(int)


def count_of(png: bytes, color: str) -> int:
    """Pixels of exactly this color ("#rrggbb")."""
    wanted = [int(color[place : place + 2], 16) for place in (1, 3, 5)]
    return int((pixels(png) == wanted).all(axis=-1).sum())


@pytest.fixture(autouse=True)
def needs_matplotlib(request):
    if "draw" in request.node.name:
        pytest.importorskip("matplotlib")


def test_draw_pareto_shows_tried_winner_and_tolerance_each_in_its_color():
    whole = draw_pareto([*TRIED, WINNER], [ORIGINAL], title="toy", floor=0.955)
    without = draw_pareto(TRIED, [ORIGINAL], title="toy")
    gray, star, line = "#9aa5b1", "#d98e04", "#b03a2e"
    assert min(count_of(whole, color) for color in (gray, star, line)) > 50
    assert count_of(without, gray) > 50
    assert count_of(without, star) == count_of(without, line) == 0


def test_draw_pareto_says_title_intended_use_and_the_names_of_winner_and_references(monkeypatch):
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    said: list[str] = []
    for owner, method in ((Figure, "suptitle"), (Figure, "supxlabel"), (Axes, "annotate")):
        original = getattr(owner, method)

        def spy(self: Any, text: str, *rest: Any, _original: Any = original, **options: Any) -> Any:
            said.append(text)
            return _original(self, text, *rest, **options)

        monkeypatch.setattr(owner, method, spy)
    draw_pareto([*TRIED, WINNER], [ORIGINAL], title="toy")
    assert sorted(said) == sorted(["toy", INTENDED_USE, "best\n800,000 bytes, 0.958", "original, float32\n0.967"])


def test_draw_pareto_gives_the_same_bytes_for_the_same_points():
    assert draw_pareto(TRIED, [ORIGINAL]) == draw_pareto(TRIED, [ORIGINAL])
    assert draw_pareto(TRIED, [ORIGINAL]) != draw_pareto(TRIED[1:], [ORIGINAL])


def test_draw_pareto_leaves_out_what_has_no_place_and_draws_a_single_point():
    lost = ParetoPoint("diverged", 1e6, math.nan)
    assert draw_pareto([TRIED[0], lost], [ORIGINAL]) == draw_pareto([TRIED[0]], [ORIGINAL])
    assert draw_pareto([TRIED[0]]).startswith(b"\x89PNG\r\n\x1a\n")


def test_draw_pareto_of_nothing_is_refused():
    with pytest.raises(DataError, match="expected points with a size and an AUROC to draw, got none"):
        draw_pareto([], [ORIGINAL])


def test_draw_pareto_wide_intervals_do_not_flatten_the_picture():
    """Both pictures show the same values, so the gray points lie about as far apart whatever the intervals."""
    from matplotlib.axes import Axes

    narrow = [ParetoPoint("a", 1e6, 0.95, 0.949, 0.951, "s"), ParetoPoint("b", 2e6, 0.96, 0.959, 0.961, "s")]
    wide = [ParetoPoint(one.label, one.size, one.auroc, 0.5, 1.0, "s") for one in narrow]
    limits = []
    original = Axes.set_ylim

    def spy(self: Any, low: float, high: float) -> Any:
        limits.append((low, high))
        return original(self, low, high)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Axes, "set_ylim", spy)
        draw_pareto(narrow)
        draw_pareto(wide)
    heights = [high - low for low, high in limits]
    # At most a quarter of the spread more on each side, and 6 % of air.
    assert heights[1] <= 0.01 * (1 + 2 * 0.25 + 2 * 0.06) + 1e-9
    assert heights[0] <= heights[1]


def test_pareto_loads_no_framework_and_no_matplotlib_before_it_is_asked_to():
    code = (
        "import sys, cxr_compress.report.plots\n"
        "assert not {'matplotlib', 'tensorflow', 'tf_keras', 'cxr_compress.pipeline'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_draw_pareto_without_matplotlib_names_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(ModuleNotFoundError, match="matplotlib"):
        draw_pareto(TRIED)
