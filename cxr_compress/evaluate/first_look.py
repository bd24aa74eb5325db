"""The original model on dev, before anything is built on it: is it what it was taken for?

A model whose classes stand in another order, or whose images were prepared in another way, answers without any error,
and everything made of it is worthless. Its AUROC on a few hundred labeled images shows that at once.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from cxr_compress.device.preprocess import normalize
from cxr_compress.device.spec import PreprocessSpec
from cxr_compress.errors import DataError
from cxr_compress.metrics import Interval, auroc_per_finding, auroc_samples, bootstrap_mean, interval

MOST_IMAGES = 256  # an AUROC of 0.9 is then known to about 0.02, one of 0.5 to 0.04
_CHANCE = 0.5
_SAMPLES = 400
# Of several presets one is always the best by chance: bounds of 99 % instead of 95 %.
_LEVEL = 0.99
_FEWEST = 5  # images of either class: fewer give no interval

Images = NDArray[np.uint8]
Floats = NDArray[np.float32]
Answer = Callable[[Floats], ArrayLike]
Progress = Callable[[str], None]


@dataclass(frozen=True)
class FirstLook:
    """What the original model is worth on dev, and what was taken for granted about it.

    Attributes:
        findings: (k,) names of its outputs that could be scored.
        auroc: (k,) with intervals over patients.
        mean: their mean.
        images: how many were looked at.
        assumed: what was taken for granted, in words.
        exclusive: every image has exactly one of the findings, and nothing says that the model's exclude one another.
    """

    findings: tuple[str, ...]
    auroc: tuple[Interval, ...]
    mean: Interval
    images: int
    assumed: str
    exclusive: bool = False

    @property
    def problem(self) -> str:
        """Why nothing should be built on it, with the likely cause; "" where nothing speaks against it."""
        scored = dict(zip(self.findings, self.auroc, strict=True))
        constant = [name for name, auroc in scored.items() if auroc.value == auroc.low == auroc.high == _CHANCE]
        if constant:
            return (
                "the original model is no better than chance: it gives every dev image the same answer for "
                f"{', '.join(constant)}: most likely it was hardly trained, or its images were prepared in another way "
                "(--preset)"
            )
        below = [f"{name} {_text(auroc)}" for name, auroc in scored.items() if auroc.high < _CHANCE]
        if below:
            return (
                f"the original model ranks below chance on dev: AUROC of {', '.join(below)}; most likely its outputs "
                "stand in another order than --labels says, the finding is the other of two classes (--positive), or "
                "its images were prepared in another way (--preset)"
            )
        if self.mean.low <= _CHANCE:
            return (
                f"the original model is no better than chance on dev: AUROC {_text(self.mean)} on {self.images} "
                "images; most likely its images were prepared in another way (--preset), its outputs stand in another "
                "order (--labels), or it was hardly trained"
            )
        if self.exclusive:
            return (
                f"each of the {self.images} dev images has exactly one of {', '.join(self.findings)}, as classes that "
                "exclude one another, but no softmax ends the original model, so its outputs are taken as logits of "
                "independent findings: end it with one, keras.Sequential([model, keras.layers.Softmax()]), and save it"
            )
        return ""

    def line(self) -> str:
        """One line: what was assumed, and what came of it."""
        scored = f"AUROC {_text(self.mean)} on {self.images} dev images"
        if not self.findings:
            scored = (
                f"NOT CHECKED: dev has fewer than {_FEWEST} images with, or without, every finding, so nothing shows "
                "whether this is right"
            )
        verdict = f": {self._verdict}" if self.problem else ""
        return f"original model: {self.assumed}; {scored}{verdict}"

    @property
    def _verdict(self) -> str:
        return "no better than chance" if "chance" in self.problem else "not what it was taken for"

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready."""
        return {
            "assumed": self.assumed,
            "images": self.images,
            "mean_auroc": _bounds(self.mean),
            "findings": {name: _bounds(one) for name, one in zip(self.findings, self.auroc, strict=True)},
            "exclusive": self.exclusive,
            "problem": self.problem,
        }

    @classmethod
    def from_dict(cls, fields: Mapping[str, Any]) -> FirstLook:
        """Build what `to_dict` gave."""
        each = fields["findings"]
        return cls(
            tuple(each),
            tuple(map(_interval_of, each.values())),
            _interval_of(fields["mean_auroc"]),
            int(fields["images"]),
            str(fields["assumed"]),
            bool(fields["exclusive"]),
        )


def _interval_of(bounds: Sequence[float | None]) -> Interval:
    value, low, high = (np.nan if bound is None else bound for bound in bounds)
    return Interval(value, low, high)


def take_first_look(
    answer: Answer,
    images: Images,
    labels: Floats,
    patients: Sequence[str],
    findings: Sequence[str],
    *,
    spec: PreprocessSpec,
    assumed: str,
    columns: Sequence[int] | None = None,
    seed: int = 0,
    unsaid: bool = False,
) -> FirstLook:
    """Score the original model on at most 256 dev images.

    Args:
        answer: from preprocessed float32 (n, height, width, channels) to scores (n, outputs) that rise with each
            finding.
        images: uint8 (n, h, w[, 3]) at the model's size.
        labels: (n, k) 0 or 1, nan or soft where unknown.
        patients: (n,); intervals resample these.
        findings: (k,).
        spec: the preprocessing.
        assumed: what was taken for granted about the model, in words.
        columns: (k,) the output of each finding; the first k by default.
        seed: of the choice of images and of the resampling.
        unsaid: the scores are of logits of which neither an activation nor the file says what they are.
    """
    sample = _Sample.draw(images, labels, patients, seed)
    if not sample.columns:
        return FirstLook((), (), Interval(np.nan, np.nan, np.nan), len(sample.images), assumed)
    values, drawn = sample.score(answer, spec, columns)
    each = tuple(interval(float(values[place]), drawn[:, place]) for place in range(len(values)))
    names = tuple(findings[column] for column in sample.columns)
    one_each = unsaid and len(names) == labels.shape[1] > 1 and bool((sample.labels.sum(axis=1) == 1).all())
    return FirstLook(names, each, bootstrap_mean(values, drawn), len(sample.images), assumed, one_each)


@dataclass(frozen=True, eq=False)
class _Sample:
    """Dev images to look at, and the findings that can be scored on them.

    Attributes:
        images: uint8 (n, h, w[, 3]).
        labels: (n, k) 0, 1 or nan of those findings.
        columns: (k,) which of all findings they are.
        patients: (n,).
        seed: of the resampling.
    """

    images: Images
    labels: NDArray[np.float64]
    columns: list[int]
    patients: list[str]
    seed: int

    @classmethod
    def draw(
        cls, images: Images, labels: Floats, patients: Sequence[str], seed: int, most: int = MOST_IMAGES
    ) -> _Sample:
        """At most `most` images, of the findings with a few images of either class."""
        rows = pick_images(labels, seed, most)
        hard = _hard(labels[rows])
        columns = [
            column
            for column in range(hard.shape[1])
            if min(np.count_nonzero(hard[:, column] == value) for value in (0.0, 1.0)) >= _FEWEST
        ]
        return cls(images[rows], hard[:, columns], columns, [patients[row] for row in rows], seed)

    def score(
        self, answer: Answer, spec: PreprocessSpec, columns: Sequence[int] | None, size: int = 32
    ) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """The AUROC of each finding (k,), and on resampled patients (samples, k)."""
        starts = range(0, len(self.images), size)
        answers = [answer(normalize(self.images[start : start + size], spec)) for start in starts]
        scores = np.concatenate([np.asarray(part, np.float64) for part in answers])
        scores = (scores if columns is None else scores[:, list(columns)])[:, self.columns]
        scores = np.where(np.isfinite(scores), scores, 0.0)
        drawn = auroc_samples(self.labels, scores, self.patients, samples=_SAMPLES, seed=self.seed)
        return auroc_per_finding(self.labels, scores), drawn


@dataclass(frozen=True)
class PresetTrial:
    """What each preset gives on dev.

    Attributes:
        auroc: preset -> mean AUROC.
        best: the one with the highest.
        behind: preset -> how far it is behind the best, with an interval over patients.
    """

    auroc: dict[str, float]
    best: str
    behind: dict[str, Interval]

    @property
    def clear(self) -> bool:
        """Whether the best is better than every other by more than chance."""
        return all(margin.low > 0 for margin in self.behind.values())

    def refuted(self, preset: str) -> bool:
        """Whether a preset is worse than the best by more than chance, and not merely taken the wrong way round.

        What ranks far below chance knows the finding: then its order is wrong, or which of two classes it is.
        """
        far_below = _CHANCE - self.auroc[preset] > self.auroc[self.best] - _CHANCE
        return preset in self.behind and self.behind[preset].low > 0 and not far_below

    @property
    def inverted(self) -> str:
        """The preset with which the model ranks the finding further below chance than any ranks it above; "" if none.

        Then it is not the preset that has to be found, but which output is what.
        """
        lowest = min(self.auroc, key=lambda name: self.auroc[name])
        return lowest if _CHANCE - self.auroc[lowest] > self.auroc[self.best] - _CHANCE else ""

    def text(self) -> str:
        """All in a row, the best first."""
        ranked = sorted(self.auroc, key=lambda name: -self.auroc[name])
        return ", ".join(f"{name} {self.auroc[name]:.3f}" for name in ranked)


def try_presets(
    answer: Answer,
    images: Images,
    labels: Floats,
    patients: Sequence[str],
    specs: Mapping[str, PreprocessSpec],
    *,
    columns: Sequence[int] | None = None,
    seed: int = 0,
) -> PresetTrial | None:
    """Score the original model on dev with each preset; None where dev cannot tell or there is nothing to compare.

    Args:
        answer: from preprocessed float32 (n, height, width, channels) to scores (n, outputs).
        images: uint8 (n, h, w[, 3]) at the model's size; every preset decodes them alike.
        labels: (n, k) 0 or 1, nan or soft where unknown.
        patients: (n,); intervals resample these.
        specs: preset -> preprocessing.
        columns: (k,) the output of each finding; the first k by default.
        seed: of the choice of images and of the resampling.
    """
    sample = _Sample.draw(images, labels, patients, seed, MOST_IMAGES // 2)
    if not sample.columns or len(specs) < 2:  # noqa: PLR2004 - a comparison takes two
        return None
    values, drawn = {}, {}
    for name, spec in specs.items():
        values[name], drawn[name] = sample.score(answer, spec, columns)
    auroc = {name: float(np.nanmean(each)) for name, each in values.items()}
    best = max(auroc, key=lambda name: auroc[name])
    behind = {
        name: bootstrap_mean(values[best] - values[name], drawn[best] - drawn[name], level=_LEVEL)
        for name in specs
        if name != best
    }
    return PresetTrial(auroc, best, behind)


def pick_images(labels: Floats, seed: int, most: int = MOST_IMAGES) -> NDArray[np.int64]:
    """Rows to look at, at most `most`, seeded; every finding's rarer class comes first, so that few images tell."""
    if len(labels) <= most:
        return np.arange(len(labels))
    rng = np.random.Generator(np.random.PCG64(seed))
    order = rng.permutation(len(labels))
    hard = _hard(labels)[order]
    share = most // max(1, 2 * hard.shape[1])
    wanted: dict[int, None] = {}
    for column in range(hard.shape[1]):
        for value in (1.0, 0.0):
            wanted.update(dict.fromkeys(np.flatnonzero(hard[:, column] == value)[:share].tolist()))
    for row in range(len(order)):
        if len(wanted) >= most:
            break
        wanted.setdefault(row)
    return np.sort(order[list(wanted)[:most]])


def settle_on_dev(
    answer: Answer,
    images: Images,
    labels: Floats,
    patients: Sequence[str],
    specs: Mapping[str, PreprocessSpec],
    *,
    preset: str,
    own: PreprocessSpec | None,
    ask: str,
    tell: Progress,
    doubt: str = "",
    force: bool | None = False,
    columns: Sequence[int] | None = None,
    seed: int = 0,
) -> tuple[PreprocessSpec, str]:
    """Try the presets on dev, tell what each gives, and settle: see `try_presets` and `settle_preset`."""
    trial = try_presets(answer, images, labels, patients, specs, columns=columns, seed=seed)
    if trial is not None:
        tell(f"AUROC on dev by --preset: {trial.text()}")
    return settle_preset(trial, preset, specs, own, ask=ask, doubt=doubt, force=force)


def settle_preset(
    trial: PresetTrial | None,
    preset: str,
    specs: Mapping[str, PreprocessSpec],
    own: PreprocessSpec | None,
    *,
    ask: str,
    doubt: str = "",
    force: bool | None = False,
) -> tuple[PreprocessSpec, str]:
    """The preprocessing to go on with, and what speaks against it where `force` overrules that ("" elsewhere).

    Args:
        trial: what dev shows; None where it shows nothing.
        preset: the choice of the user, or of layers inside the model; "" where there is none.
        specs: preset -> preprocessing.
        own: that of `preset`, or None.
        ask: the sentence that asks the user.
        doubt: what speaks against `preset` before dev is looked at; only being the best of all there outweighs it.
        force: `preset` counts whatever dev shows; None where the command has no such flag to advise.

    Raises:
        DataError: nothing is known and dev cannot tell, or dev shows that the choice is wrong.
    """
    if own is not None:
        against = doubt if trial is None or trial.best != preset else ""
        if trial is not None and trial.refuted(preset):
            against = (
                f"--preset={preset} does not fit this model: AUROC on dev {trial.auroc[preset]:.3f}, with "
                f"--preset={trial.best} {trial.auroc[trial.best]:.3f} ({trial.text()}): give that, or add --force"
            )
        if against and not force:
            raise DataError(against.partition(", or add --force")[0] if force is None else against)
        return own, against
    if trial is None:
        raise DataError(ask)
    if trial.inverted:
        raise DataError(
            f"{ask}; on dev the model ranks below chance (AUROC: {trial.text()}), as if its outputs stood in another "
            "order than --labels says, or the finding were the other of two classes (--positive)"
        )
    if not trial.clear:
        raise DataError(f"{ask}; on dev no preset is clearly the best (AUROC: {trial.text()})")
    return specs[trial.best], ""


def _hard(labels: Floats) -> NDArray[np.float64]:
    values = np.asarray(labels, np.float64)
    return np.where((values == 0) | (values == 1), values, np.nan)


def _text(auroc: Interval) -> str:
    return f"{auroc.value:.3f} [{auroc.low:.3f}, {auroc.high:.3f}]"


def _bounds(auroc: Interval) -> list[float | None]:
    return [None if np.isnan(value) else float(value) for value in (auroc.value, auroc.low, auroc.high)]
