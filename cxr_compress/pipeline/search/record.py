"""Every point that a search tried, kept in search.json after each, so that a killed search goes on where it was."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from cxr_compress import __version__
from cxr_compress.errors import CompressionError, DataError
from cxr_compress.files import make_folder, write_text
from cxr_compress.pipeline.search.score import CandidateScore
from cxr_compress.recipe import Recipe
from cxr_compress.report.plots import TRIED, ParetoPoint, draw_pareto

ORIGINAL = "fp32"
_TRAININGS = ("recovery_epochs", "sparsity_epochs", "finetune_epochs", "qat_epochs")


class DevJudge(Protocol):
    """Judges candidates on dev images alone.

    Every method may be called again with the same arguments after a kill, and then gives the same; what it keeps on
    the way in a folder of the candidate (`folder_name`) is its own. Both recoveries of one recipe may share that
    folder: filters go the same way, whatever the epochs.
    """

    def original(self) -> Mapping[str, CandidateScore]:
        """The reference points by name: "fp32", the original float model, and others such as "int8", its int8 twin."""

    def judge_cheap(self, recipe: Recipe, *, epochs: int) -> CandidateScore:
        """A candidate after a short recovery (`shortened`).

        Raises:
            BudgetError: the budget cannot be reached; the search notes why and goes on.
        """

    def recover_full(self, recipe: Recipe) -> CandidateScore:
        """A candidate after the whole recipe, judged by the file that would ship.

        Raises:
            BudgetError: as `judge_cheap`.
        """


class Runner(DevJudge, Protocol):
    """A whole run: judges on dev, and scores one finished model on test."""

    def score_test(self, recipe: Recipe) -> dict[str, Any]:
        """The report of the one candidate that was chosen; nothing else of a search may look at test images."""


@dataclasses.dataclass(frozen=True)
class DevOnly:
    """What the choosing part of a search is given of a runner: it has no way to the test images."""

    original: Any
    judge_cheap: Any
    recover_full: Any

    @classmethod
    def of(cls, runner: DevJudge) -> DevOnly:
        """The three methods of a runner, and no more."""
        return cls(runner.original, runner.judge_cheap, runner.recover_full)


def shortened(recipe: Recipe, epochs: int) -> Recipe:
    """The same recipe with at most `epochs` epochs in every training after the removal, and without QAT.

    Where the recipe zeroes weights or draws them anew, that training keeps one epoch: it cannot do without.
    """
    changes = {flag: min(recipe.value(flag), epochs) for flag in _TRAININGS}
    if recipe.sparsity.zeroes_weights:
        changes["sparsity_epochs"] = max(changes["sparsity_epochs"], 1)
    if recipe.recovery.from_scratch:
        changes["recovery_epochs"] = max(changes["recovery_epochs"], 1)
    changes["qat_epochs"] = max(changes["qat_epochs"], 1)
    return recipe.with_values(**changes, qat="never")


def folder_name(recipe: Recipe) -> str:
    """A folder for all that is made of one candidate: its name, and a hash of the rest of its recipe."""
    return f"{recipe.name}-{recipe_hash(recipe)[:12]}"


def recipe_hash(recipe: Recipe) -> str:
    """The hash of all choices of a recipe."""
    # Not sorted inside: the order of `overrides` is one of them.
    return hashlib.sha256(json.dumps(recipe.to_dict()).encode()).hexdigest()


RECORD_NAME = "search.json"
RECORD_FORMAT = 1
CHEAP, FULL = "cheap", "full"


@dataclass(frozen=True)
class Point:
    """One candidate, judged once.

    Attributes:
        key: the hash of all that decides its score.
        stage: "cheap" or "full".
        name: as the candidate is called.
        changes: what its recipe changes in that of the search.
        fingerprint: of base model and images, as the search was given it.
        score: None where its budget cannot be reached.
        refused: why, then.
    """

    key: str
    stage: str
    name: str
    changes: Mapping[str, Any]
    fingerprint: str
    score: CandidateScore | None
    refused: str | None = None

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready."""
        score = None if self.score is None else self.score.to_dict()
        return {**vars(self), "changes": dict(self.changes), "score": score}

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Point:
        """The inverse of `to_dict`.

        Raises:
            CompressionError: other fields.
        """
        score = values["score"]
        return cls(**{**values, "score": None if score is None else CandidateScore.from_dict(score)})


def point_key(stage: str, recipe: Recipe, fingerprint: str, epochs: int = 0) -> str:
    """The key of a candidate: the same recipe on the same base and images, recovered as far, scores the same.

    Args:
        stage: "cheap" or "full".
        recipe: of the candidate.
        fingerprint: of base model and images.
        epochs: of the cheap recovery.
    """
    text = json.dumps([stage, recipe_hash(recipe), fingerprint, epochs if stage == CHEAP else 0, __version__])
    return hashlib.sha256(text.encode()).hexdigest()


class SearchRecord:
    """The file of one search; points of other base models or images stay in it and count for nothing."""

    def __init__(self, folder: Path, fingerprint: str) -> None:
        """Open what is there.

        Raises:
            DataError: search.json cannot be read; it is left as it is.
        """
        make_folder(folder)
        self.path = folder / RECORD_NAME
        self.fingerprint = fingerprint
        self._content: dict[str, Any] = {"format": RECORD_FORMAT, "points": [], "tests": []}
        if self.path.is_file():
            self._content = _read(self.path)
        try:
            self._points = {values["key"]: Point.from_dict(values) for values in self._content["points"]}
        except (CompressionError, KeyError, TypeError) as error:
            raise _unreadable(self.path) from error

    @property
    def points(self) -> list[Point]:
        """Those of this base model and these images, in the order they were tried."""
        return [point for point in self._points.values() if point.fingerprint == self.fingerprint]

    def known(self, key: str) -> Point | None:
        """A point that was tried before."""
        return self._points.get(key)

    def add(self, point: Point) -> None:
        """Keep a point, on disk, at once.

        Raises:
            CompressionError: the file cannot be written.
        """
        self._points[point.key] = point
        self._write()

    @property
    def original(self) -> dict[str, CandidateScore]:
        """The reference points, if they were judged."""
        known = self._content.get("original", {}).get(self.fingerprint, {})
        return {name: CandidateScore.from_dict(values) for name, values in known.items()}

    def keep_original(self, scores: Mapping[str, CandidateScore]) -> None:
        """Keep the reference points."""
        known = self._content.setdefault("original", {})
        known[self.fingerprint] = {name: score.to_dict() for name, score in scores.items()}
        self._write()

    def look_at_test(self, point: Point) -> int:
        """Note, before it happens, that a winner is scored on test; how many winners were until now, it included.

        Going on with the scoring of one that a kill interrupted is the same look.
        """
        looks = self._looks()
        if all(look["key"] != point.key for look in looks):
            self._content["tests"].append({"key": point.key, "fingerprint": self.fingerprint, "report": None})
            self._write()
        return len(self._looks())

    def report_of(self, point: Point) -> dict[str, Any] | None:
        """The report of a winner that was scored on test before."""
        return next((look["report"] for look in self._looks() if look["key"] == point.key), None)

    def keep_report(self, point: Point, report: Mapping[str, Any]) -> None:
        """Keep what the scoring on test gave."""
        look = next(look for look in self._looks() if look["key"] == point.key)
        look["report"] = dict(report)
        self._write()

    @property
    def winner(self) -> str | None:
        """The key of the point that was chosen last; None before."""
        return self._content.get("searches", {}).get(self.fingerprint, {}).get("winner")

    def choose(self, summary: Mapping[str, Any]) -> None:
        """Keep what was searched and what came out: JSON-ready, for whoever reads the file."""
        self._content.setdefault("searches", {})[self.fingerprint] = dict(summary)
        self._write()

    def _looks(self) -> list[dict[str, Any]]:
        return [look for look in self._content["tests"] if look["fingerprint"] == self.fingerprint]

    def _write(self) -> None:
        self._content["points"] = [point.to_dict() for point in self._points.values()]
        write_text(self.path, json.dumps(self._content, indent=1) + "\n")


def _read(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise _unreadable(path) from error
    if not isinstance(content, dict) or content.get("format") != RECORD_FORMAT:
        raise _unreadable(path)
    if not all(isinstance(content.get(name), list) for name in ("points", "tests")):
        raise _unreadable(path)
    return content


def _unreadable(path: Path) -> DataError:
    return DataError(
        f"{path}: expected the record of a search as this version writes it; move it away to start the search anew"
    )


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
    words = {name: f"original, {'float32' if name == ORIGINAL else name}" for name in record.original}
    references = [_at(words[name], score) for name, score in record.original.items()]
    floor = record.original[ORIGINAL].auroc - tolerance if tolerance is not None and record.original else None
    return draw_pareto(points, references, title=title, floor=floor, y_label="AUROC on dev images")


def _drawn(point: Point, winner: str | None) -> list[ParetoPoint]:
    """A point where it has a place: a refused one has none."""
    if point.score is None:
        return []
    series = _RECOVERED if point.stage == FULL else TRIED
    return [_at(point.name, point.score, series, winner=point.key == winner)]


def _at(label: str, score: CandidateScore, series: str = TRIED, *, winner: bool = False) -> ParetoPoint:
    return ParetoPoint(label, score.tflite_bytes, score.auroc, score.auroc_low, score.auroc_high, series, winner)
