"""Signs that a film is not what a model was trained on: warnings for a person to judge, never errors.

Colour is checked where an image becomes gray (`preprocess.coloured_share`); here it is inversion, which no number in
the file tells: a film stored with dark bones gets findings like any other, and they are wrong.
"""

from __future__ import annotations

import cv2
import numpy as np

# Below this a film counts as inverted. At this limit, on 64 x 64 pixels: false alarms on 0 of 624 films of Kermany's
# test split and 4 of 1,705 of nih_mini (0.2 %, all turned or far off the centre); of their inverted copies 100 % and
# 99.1 % are found, and both of the films in nih_mini that are listed as inverted.
INVERTED_BELOW = -0.1

INVERTED_TEXT = (
    "looks inverted (the middle of the chest is darker than the lungs beside it); check that bones are bright, "
    "export it again if they are not"
)

_SIZE = 64
_LEAST_SPREAD = 1.0
# As shares of the height and width: where spine and heart lie, and where lungs do. Averaged over shifts to the side,
# because few patients stand in the middle of their film.
_CHEST = slice(0.1, 0.9)
_MIDDLE_ROWS, _LUNG_ROWS = slice(0.15, 0.85), slice(0.2, 0.6)
_MIDDLE, _LEFT, _RIGHT = (0.44, 0.56), (0.2, 0.36), (0.64, 0.8)
_SHIFTS = (-0.1, -0.05, 0.0, 0.05, 0.1)


def film_warnings(film: np.ndarray) -> tuple[str, ...]:
    """What a person should look at in a gray chest film, uint8 (H, W); () where nothing is odd."""
    return (INVERTED_TEXT,) if inversion_score(film) < INVERTED_BELOW else ()


def inversion_score(film: np.ndarray) -> float:
    """How much brighter the middle of the chest is than the lungs, in standard deviations of the gray levels.

    About 1 for a frontal film and the exact opposite for its negative; 0.0 for a blank one. The corners of a film are
    not asked: what a collimator hides is black in a film and in its negative. Lateral films give no meaningful answer.

    Args:
        film: uint8 (H, W), any size; 64 pixels and more are enough.
    """
    small = cv2.resize(np.ascontiguousarray(film), (_SIZE, _SIZE), interpolation=cv2.INTER_AREA).astype(np.float64)
    chest = small[_pixels(_CHEST), _pixels(_CHEST)]
    spread = float(chest.std())
    if spread < _LEAST_SPREAD:
        return 0.0
    differences = [_mean(small, _MIDDLE_ROWS, _MIDDLE, shift) - _lungs(small, shift) for shift in _SHIFTS]
    return float(np.mean(differences)) / spread


def _lungs(film: np.ndarray, shift: float) -> float:
    return (_mean(film, _LUNG_ROWS, _LEFT, shift) + _mean(film, _LUNG_ROWS, _RIGHT, shift)) / 2


def _mean(film: np.ndarray, rows: slice, columns: tuple[float, float], shift: float) -> float:
    """Mean gray level of a rectangle that is moved sideways by a share of the width."""
    return float(film[_pixels(rows), _pixels(slice(columns[0] + shift, columns[1] + shift))].mean())


def _pixels(shares: slice) -> slice:
    return slice(int(shares.start * _SIZE), int(shares.stop * _SIZE))
