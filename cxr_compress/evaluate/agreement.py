"""How far a compressed model agrees with the original on images without labels: what takes the place of AUROC there.

It says nothing about whether the original is right. What is not defined (a kappa where every decision is the same, a
correlation of a constant) has a reason instead of a number, and never counts as agreement.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from statistics import NormalDist
from typing import Any

import numpy as np
import numpy.typing as npt

from cxr_compress.errors import DataError
from cxr_compress.evaluate.degradation import LARGEST_LOGIT_DISTANCE, logit_distance, squared_distances
from cxr_compress.evaluate.finding import interval_dict
from cxr_compress.evaluate.score import Answers
from cxr_compress.metrics import ENOUGH_IMAGES, Interval, interval, mean_samples, mid_ranks

Array = npt.NDArray[np.float64]
SAYS_NOTHING = "agreement with the original says nothing about whether the original is right on these images"
HOLDS, BROKEN, TOO_FEW = "holds", "broken", "not enough images to tell"
_TWO_SIDED = NormalDist().inv_cdf(0.975)  # deviations, 95 %
_UNDEFINED = Interval(math.nan, math.nan, math.nan)


@dataclass(frozen=True)
class FindingAgreement:
    """One finding; intervals are over resampled patients.

    Attributes:
        positives: images that the original decides to have it.
        logit_distance: root mean square difference of the logits, in standard deviations of the original's.
        flips: share of the images whose decision differs.
        spearman: rank correlation of the two models' scores.
        kappa: Cohen's, of the two models' decisions.
        cam: mean correlation of the two class activation maps of an image.
        reasons: what is not defined -> why.
    """

    positives: int
    logit_distance: Interval
    flips: Interval
    spearman: Interval
    kappa: Interval
    cam: Interval
    reasons: Mapping[str, str] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """Gives JSON-ready values; null where something is not defined, with the reason."""
        measured = ("logit_distance", "flips", "spearman", "kappa", "cam")
        values = {name: interval_dict(getattr(self, name)) for name in measured}
        return {"positives": self.positives, **values, "reasons": dict(self.reasons)}


@dataclass(frozen=True)
class Agreement:
    """A model against the original on the same images.

    Attributes:
        images: how many.
        patients: of how many.
        logit_distance: as in `FindingAgreement`, over all findings.
        flips: share of all decisions (image and finding) that differ; of classes that exclude one another the share of
            images whose predicted class does.
        findings: finding -> its own.
    """

    images: int
    patients: int
    logit_distance: Interval
    flips: Interval
    findings: Mapping[str, FindingAgreement]

    def broken(self, max_flips: float) -> list[str]:
        """Which bounds on logits and decisions do not hold, in words; empty where all do.

        Of few images one decision is a large share: flips count where even the lower end of their interval is above.
        """
        bounds = {
            "distance of the logits": (self.logit_distance.value, LARGEST_LOGIT_DISTANCE),
            "share of decisions that change": (self.flips.low, max_flips),
        }
        # Not "value > bound": a NaN must not pass.
        return [f"{name} {value:.4f} above {bound:g}" for name, (value, bound) in bounds.items() if not value <= bound]

    def to_dict(self) -> dict[str, Any]:
        """Gives JSON-ready values: summaries only, nothing of a single image or patient."""
        return {
            "images": self.images,
            "patients": self.patients,
            "logit_distance": interval_dict(self.logit_distance),
            "flips": interval_dict(self.flips),
            "findings": {name: one.to_dict() for name, one in self.findings.items()},
        }


def measure_agreement(
    candidate: Answers,
    original: Answers,
    patients: Sequence[str],
    findings: Sequence[str],
    *,
    maps: tuple[npt.ArrayLike, npt.ArrayLike] | None = None,
    no_maps: str = "not compared",
    samples: int = 1000,
    seed: int = 0,
) -> Agreement:
    """Compare what two models answered to the same images.

    Args:
        candidate: logits, probabilities and decisions of one.
        original: of the other.
        patients: (images,) whose they are; intervals resample these.
        findings: (k,) names of the columns.
        maps: class activation maps (images, h, w, k) of both, the candidate's first.
        no_maps: why there are none.
        samples: resampled sets behind an interval.
        seed: of the resampling.

    Raises:
        DataError: shapes disagree, there is no image, or a logit is no number.
    """
    ours, theirs = (np.asarray(answers.logits, np.float64) for answers in (candidate, original))
    if not ours.shape == theirs.shape == (len(patients), len(findings)) or not ours.size:
        raise DataError(
            f"a comparison needs logits of both models for {len(patients)} images (1 or more) and {len(findings)} "
            f"findings, got {ours.shape} and {theirs.shape}: run both on the same images"
        )
    for name, logits in (("compressed", ours), ("original", theirs)):
        if not np.isfinite(logits).all():
            raise DataError(
                f"the {name} model gives {np.count_nonzero(~np.isfinite(logits))} logits that are no numbers: look for "
                "NaN in its weights"
            )
    if candidate.decisions is None or original.decisions is None:
        raise DataError("a comparison needs two models that decide: give files with thresholds")
    options: dict[str, Any] = {"samples": samples, "seed": seed}
    squared = squared_distances(ours, theirs, original.activation)
    differs: Any = candidate.decisions != original.decisions
    flipped = differs.any(axis=1)[:, None] if original.activation == "softmax" else differs
    cams = None if maps is None else _map_correlations(*maps)
    drawn = mean_samples(squared, patients, **options)
    each = {}
    for column, name in enumerate(findings):
        distance = interval(math.sqrt(squared[:, column].mean()), np.sqrt(drawn[:, column]))
        pair = candidate.ranking[:, column], original.ranking[:, column]
        decided = candidate.decisions[:, column], original.decisions[:, column]
        spearman, no_spearman = _spearman(*pair, patients, options)
        kappa, no_kappa = _kappa(*decided, patients, options)
        cam, no_cam = (_UNDEFINED, no_maps) if cams is None else _mean_map(cams[:, column], patients, options)
        reasons = {"spearman": no_spearman, "kappa": no_kappa, "cam": no_cam}
        each[name] = FindingAgreement(
            positives=int(decided[1].sum()),
            logit_distance=distance,
            flips=share_of(differs[:, [column]], patients, **options),
            spearman=spearman,
            kappa=kappa,
            cam=cam,
            reasons={what: reason for what, reason in reasons.items() if reason},
        )
    return Agreement(
        len(patients),
        len(set(patients)),
        interval(logit_distance(ours, theirs, original.activation), np.sqrt(drawn.mean(axis=1))),
        share_of(flipped, patients, **options),
        each,
    )


def share_of(differs: npt.NDArray[np.bool_], patients: Sequence[str], *, samples: int, seed: int) -> Interval:
    """The share of differing decisions (images, columns), with its interval over resampled patients.

    Where hardly any differs, resampling finds too little, and where none does nothing at all. So the upper end is at
    least that of Wilson's interval for the share of patients with a difference, each with as many as such a patient
    has here.

    Source: Wilson 1927, "Probable inference, the law of succession, and statistical inference".
    """
    rows = differs.mean(axis=1)
    share = interval(float(rows.mean()), mean_samples(rows[:, None], patients, samples=samples, seed=seed)[:, 0])
    names, member = np.unique(np.asarray(patients), return_inverse=True)
    concerned = np.zeros(len(names), bool)
    np.logical_or.at(concerned, member, rows > 0)
    hit = float(concerned.mean())
    high = _wilson_upper(hit, len(names)) * (share.value / hit if hit else 1.0)
    return Interval(share.value, share.low, float(np.fmax(share.high, min(high, 1.0))))


def _wilson_upper(share: float, count: int) -> float:
    z2 = _TWO_SIDED**2
    doubt = _TWO_SIDED * math.sqrt(share * (1 - share) / count + z2 / (4 * count**2))
    return (share + z2 / (2 * count) + doubt) / (1 + z2 / count)


def _spearman(
    ours: npt.ArrayLike, theirs: npt.ArrayLike, patients: Sequence[str], options: Mapping[str, Any]
) -> tuple[Interval, str]:
    """Pearson's correlation of the ranks; on resampled patients of the ranks among all images."""
    x, y = mid_ranks(ours), mid_ranks(theirs)
    for name, ranks in (("original", y), ("compressed model", x)):
        if not np.ptp(ranks):
            return _UNDEFINED, f"the {name} gives every image the same answer"
    x, y = (x - x.mean()) / x.std(), (y - y.mean()) / y.std()
    moments = mean_samples(np.stack([x, y, x * x, y * y, x * y], axis=1), patients, **options)
    mean_x, mean_y, xx, yy, xy = moments.T
    spread = np.sqrt(np.clip(xx - mean_x**2, 0, None) * np.clip(yy - mean_y**2, 0, None))
    drawn = np.divide(xy - mean_x * mean_y, spread, out=np.full(len(spread), np.nan), where=spread > 1e-12)  # noqa: PLR2004
    return interval(float((x * y).mean()), drawn), ""


def _kappa(
    ours: npt.NDArray[np.bool_],
    theirs: npt.NDArray[np.bool_],
    patients: Sequence[str],
    options: Mapping[str, Any],
) -> tuple[Interval, str]:
    """Agreement of decisions beyond what chance gives.

    Source: Cohen 1960, "A coefficient of agreement for nominal scales".
    """
    if theirs.all() or not theirs.any():
        return _UNDEFINED, f"the original decides {'for' if theirs.any() else 'against'} it on every image"
    moments = np.stack([ours, theirs, ours == theirs], axis=1).astype(np.float64)

    def kappa(means: Array) -> Array:
        a, b, same = means.T
        chance = a * b + (1 - a) * (1 - b)
        return np.divide(same - chance, 1 - chance, out=np.full(len(same), np.nan), where=chance < 1)

    value = float(kappa(moments.mean(axis=0, keepdims=True))[0])
    return interval(value, kappa(mean_samples(moments, patients, **options))), ""


def _mean_map(correlations: Array, patients: Sequence[str], options: Mapping[str, Any]) -> tuple[Interval, str]:
    if np.isnan(correlations).all():
        return _UNDEFINED, "the maps of one model are flat on every image"
    drawn = mean_samples(correlations[:, None], patients, **options)[:, 0]
    return interval(float(np.nanmean(correlations)), drawn), ""


def _map_correlations(ours: npt.ArrayLike, theirs: npt.ArrayLike) -> Array:
    """(images, k): Pearson's correlation over the places of a map; NaN where one of the two is flat."""
    cells = [np.asarray(maps, np.float64).reshape(len(maps), -1, np.shape(maps)[-1]) for maps in (ours, theirs)]  # type: ignore[arg-type]
    x, y = (values - values.mean(axis=1, keepdims=True) for values in cells)
    norm = np.sqrt((x * x).sum(axis=1) * (y * y).sum(axis=1))
    return np.divide((x * y).sum(axis=1), norm, out=np.full(norm.shape, np.nan), where=norm > 0)


def check_agreement(
    agreement: Agreement, *, max_flips: float, max_logit_distance: float, lacking: Sequence[str] = ()
) -> dict[str, Any]:
    """Whether a candidate agrees enough, JSON-ready: "verdict" is one of `HOLDS`, `BROKEN` and `TOO_FEW`.

    It holds where the whole interval of both measures lies within its limit, and is broken where one lies beyond it
    from end to end. Else the images do not tell, as with fewer than `ENOUGH_IMAGES` patients, or where they lack what
    the original knows: models that agree on one side of a finding may part on the other.

    Args:
        agreement: of the candidate.
        max_flips: share of the decisions that may change.
        max_logit_distance: how far logits may be apart.
        lacking: what the images lack, a sentence each.
    """
    measures = {
        "flips": (agreement.flips, max_flips),
        "logit_distance": (agreement.logit_distance, max_logit_distance),
    }
    verdicts = {name: check_limit(measured, limit) for name, (measured, limit) in measures.items()}
    order = (BROKEN, TOO_FEW, HOLDS)
    verdict = min(verdicts.values(), key=order.index)
    if verdict == HOLDS and (agreement.patients < ENOUGH_IMAGES or lacking):
        verdict = TOO_FEW
    return {
        "kind": "agreement",
        "verdict": verdict,
        "holds": verdict == HOLDS,
        **{
            name: {**interval_dict(measured), "max": limit, "verdict": verdicts[name]}
            for name, (measured, limit) in measures.items()
        },
        "patients": agreement.patients,
        # With so many patients and not one decision changed, the limit would be shown.
        "patients_needed": max(ENOUGH_IMAGES, _patients_needed(max_flips)),
        "lacking": list(lacking),
        "reason": "",
    }


def check_limit(measured: Interval, limit: float) -> str:
    """`HOLDS` where the whole interval is within the limit, `BROKEN` where all of it is beyond, else `TOO_FEW`."""
    if measured.high <= limit:  # false of NaN
        return HOLDS
    return BROKEN if measured.low > limit else TOO_FEW


def _patients_needed(max_flips: float) -> int:
    """The fewest of whom Wilson's upper end is within the limit, where no decision changes."""
    return math.ceil(_TWO_SIDED**2 * (1 - max_flips) / max_flips) if max_flips else 0
