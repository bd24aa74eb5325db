"""Whether probabilities mean what they say: of the films called 30 %, do 30 % have the finding?"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike

from cxr_compress.errors import DataError
from cxr_compress.metrics.checks import Array, checked, mean_defined
from cxr_compress.metrics.ranking import rank


def brier_score(labels: ArrayLike, probabilities: ArrayLike) -> float:
    """The mean squared distance between probability and truth; lower is better, 0 is perfect.

    It mixes calibration with separation and falls with the prevalence: p (1 - p) is what a constant guess of the
    prevalence p scores, so compare it with that and only on the same films.

    Args:
        labels: (n,), 0, 1 or nan; a film of unknown label is left out.
        probabilities: (n,) in [0, 1].

    Returns:
        A value in [0, 1], or nan if no label is known.

    Raises:
        DataError: As in ``auroc``, or a probability is outside [0, 1].

    Source: Brier 1950, "Verification of forecasts expressed in terms of probability", in its form for two classes.
    """
    truth, values = _checked_probabilities(labels, probabilities)
    return mean_defined((values[:, 0] - truth[:, 0]) ** 2)


def expected_calibration_error(labels: ArrayLike, probabilities: ArrayLike, *, bins: int = 15) -> float:
    """How far, on average, the mean probability of like films is from the share of them that has the finding.

    The bins are of equal *mass*: each holds about the same number of films. Bins of equal width would put nearly all
    films of a rare finding into the first one and hide what happens there. Films of equal probability (int8 outputs
    repeat) stay in one bin, that of the middle of their ranks, so the order of the films cannot matter. It is biased
    upwards on small sets: 15 bins of 20 films find about 0.05 in a perfectly calibrated model at 10 % prevalence.

    Args:
        labels: (n,), 0, 1 or nan; a film of unknown label is left out.
        probabilities: (n,) in [0, 1].
        bins: How many.

    Returns:
        A value in [0, 1], or nan if no label is known.

    Raises:
        DataError: As in ``brier_score``.

    Source: Naeini et al. 2015, "Obtaining well calibrated probabilities using Bayesian binning", with the bins of
    equal mass of Nixon et al. 2019, "Measuring calibration in deep learning".
    """
    truth, values = _checked_probabilities(labels, probabilities)
    ranked = rank(truth[:, 0], values[:, 0])
    films = len(ranked.order)
    if not films:
        return float("nan")
    sizes = np.diff(ranked.starts, append=films)
    block_bin = ((ranked.starts + sizes / 2) / films * bins).astype(np.int64)
    gaps = values[ranked.order, 0] - ranked.positive
    return float(np.abs(np.bincount(np.repeat(block_bin, sizes), weights=gaps, minlength=bins)).sum() / films)


def _checked_probabilities(labels: ArrayLike, probabilities: ArrayLike) -> tuple[Array, Array]:
    """As ``checked``, and in [0, 1]."""
    truth, values = checked(labels, probabilities)
    if values.min() < 0 or values.max() > 1:
        raise DataError(
            f"expected probabilities from 0 to 1, got {values.min():g} to {values.max():g}; give sigmoid(logit)"
        )
    return truth, values
