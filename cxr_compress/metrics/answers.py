"""How the answers of a model to a set of images are spread: what a model file keeps of its training images."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from cxr_compress.errors import DataError

QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95)
_DIGITS = 5  # significant ones: these are statistics of a few hundred images


@dataclass(frozen=True)
class AnswerStatistics:
    """What a model said of a set of images, k findings.

    Attributes:
        images: how many.
        mean: (k,) of the logits.
        std: (k,) of the logits.
        quantiles: k rows of the logits' `QUANTILES`.
        above: (k,) share of the images that have the finding by the model's thresholds.
        features_spread: root mean square distance of the pooled features from their mean; None where the head reads
            none.
        features_rank: how many directions they spread over: the participation ratio of their covariance; None likewise.
    """

    images: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    quantiles: tuple[tuple[float, ...], ...]
    above: tuple[float, ...]
    features_spread: float | None = None
    features_rank: float | None = None

    @classmethod
    def of(cls, logits: ArrayLike, decisions: ArrayLike, features: ArrayLike | None = None) -> AnswerStatistics:
        """Sum up answers.

        Args:
            logits: (images, k), finite.
            decisions: bool (images, k).
            features: (images, channels), what the head reads; None where that is not known.

        Raises:
            DataError: shapes disagree, there is no image, or a logit is no number.

        Source: the participation ratio is (sum of eigenvalues)^2 / sum of their squares: Gao et al. 2017, "A theory of
        multineuronal dimensionality, dynamics and measurement", equation 4.
        """
        z, decided = np.asarray(logits, np.float64), np.asarray(decisions, np.float64)
        if z.ndim != 2 or z.shape != decided.shape or not z.size or not np.isfinite(z).all():  # noqa: PLR2004
            raise DataError(
                f"expected finite logits and decisions (images, findings), got {z.shape} and {decided.shape} with "
                f"{np.count_nonzero(~np.isfinite(z))} that are no numbers: look for NaN in the model's weights"
            )
        spread = rank = None
        if features is not None:
            centered = np.asarray(features, np.float64)
            centered = centered - centered.mean(axis=0)
            # The smaller of the two matrices with these eigenvalues.
            gram = centered @ centered.T if len(centered) < centered.shape[1] else centered.T @ centered
            total, squares = float(np.trace(gram)), float((gram * gram).sum())
            spread, rank = _short(math.sqrt(total / len(z))), _short(total**2 / squares) if squares else 0.0
        return cls(
            len(z),
            tuple(map(_short, z.mean(axis=0))),
            tuple(map(_short, z.std(axis=0))),
            tuple(tuple(map(_short, row)) for row in np.quantile(z, QUANTILES, axis=0).T),
            tuple(map(_short, decided.mean(axis=0))),
            spread,
            rank,
        )

    def to_dict(self) -> dict[str, Any]:
        """Gives JSON-ready values."""
        fields = dataclasses.asdict(self)
        return {name: _plain(value) for name, value in fields.items()}

    @classmethod
    def from_dict(cls, fields: Any) -> AnswerStatistics:
        """Build what `to_dict` gave.

        Raises:
            DataError: an unknown or missing key, or a value of the wrong kind.
        """
        known = {field.name for field in dataclasses.fields(cls)}
        if not isinstance(fields, dict) or set(fields) != known:
            raise DataError(f"AnswerStatistics: expected {sorted(known)}, got {fields!r}")
        try:
            found = cls(
                int(fields["images"]),
                tuple(map(float, fields["mean"])),
                tuple(map(float, fields["std"])),
                tuple(tuple(map(float, row)) for row in fields["quantiles"]),
                tuple(map(float, fields["above"])),
                _float_or_none(fields["features_spread"]),
                _float_or_none(fields["features_rank"]),
            )
        except (TypeError, ValueError) as error:
            raise DataError(f"AnswerStatistics: expected numbers, got {fields!r}") from error
        if len({len(found.mean), len(found.std), len(found.above), len(found.quantiles)}) != 1:
            raise DataError(f"AnswerStatistics: expected as many numbers for each statistic, got {fields!r}")
        return found


def _float_or_none(value: Any) -> float | None:
    return None if value is None else float(value)


def _short(value: float) -> float:
    return float(f"{value:.{_DIGITS}g}")


def _plain(value: Any) -> Any:
    return [_plain(item) for item in value] if isinstance(value, tuple | list) else value
