"""The picture of a search: every point tried, the front, the winner."""

from __future__ import annotations

from pathlib import Path

from cxr_compress.pipeline.search.record import FULL, Point, SearchRecord
from cxr_compress.pipeline.search.runner import UNCUT
from cxr_compress.pipeline.search.score import CandidateScore
from cxr_compress.report.pareto import TRIED, ParetoPoint, draw_pareto

_RECOVERED = "recovered in full"


def draw_search(folder: Path, fingerprint: str, *, title: str, tolerance: float | None = None) -> bytes:
    """Draw what a search has tried so far as a PNG; AUROCs are those on dev.

    Args:
        folder: holds search.json.
        fingerprint: as the search was given it.
        title: of the picture.
        tolerance: AUROC that may be lost; None for no line.

    Raises:
        DataError: nothing was tried yet, or search.json cannot be read.
        ModuleNotFoundError: matplotlib is not installed (extra `report`).
    """
    record = SearchRecord(folder, fingerprint)
    points = [drawn for point in record.points for drawn in _drawn(point, record.winner)]
    words = {name: f"uncut, {'float32' if name == UNCUT else name}" for name in record.uncut}
    references = [_at(words[name], score) for name, score in record.uncut.items()]
    floor = record.uncut[UNCUT].auroc - tolerance if tolerance is not None and record.uncut else None
    return draw_pareto(points, references, title=title, floor=floor, y_label="AUROC on dev films")


def _drawn(point: Point, winner: str | None) -> list[ParetoPoint]:
    """A point where it has a place: a refused one has none."""
    if point.score is None:
        return []
    series = _RECOVERED if point.stage == FULL else TRIED
    return [_at(point.name, point.score, series, winner=point.key == winner)]


def _at(label: str, score: CandidateScore, series: str = TRIED, *, winner: bool = False) -> ParetoPoint:
    return ParetoPoint(label, score.tflite_bytes, score.auroc, score.auroc_low, score.auroc_high, series, winner)
