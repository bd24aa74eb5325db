"""What a model file answered to images drawn from a seed, so that any machine can check that it still answers so.

The images are drawn, not stored: no patient is in them, and a few hundred bytes check the whole way from pixels to
decisions.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from cxr_compress.device.spec import PreprocessSpec
from cxr_compress.errors import ModelFileError

REFERENCE_IMAGES = 4
_GRID = 24  # the images have this many flat fields a side, whatever their size in pixels
_AGAIN = "copy or convert the file again"


@dataclass(frozen=True)
class ReferenceOutputs:
    """What a model file answered when it was packed; n images, k findings.

    Attributes:
        seed: of the images, for `draw_reference_images`.
        logits: n rows of k numbers.
        positive: n rows of k decisions, at the thresholds of the file.
        step: the value of one code (LSB) of the logits; None where the file computes them in float.
        runtime: what computed them, for instance "ai-edge-litert 2.3.0".
        kernels: how far a logit was off when the same runtime used its other set of kernels (without XNNPACK). Kernels
            round in different places, and a deep int8 network adds that up: on DenseNets to 8 codes.
    """

    seed: int
    logits: tuple[tuple[float, ...], ...]
    positive: tuple[tuple[bool, ...], ...]
    step: float | None
    runtime: str
    kernels: float = 0.0

    def __post_init__(self) -> None:
        whole = isinstance(self.seed, int) and not isinstance(self.seed, bool) and self.seed >= 0
        if not whole or not isinstance(self.runtime, str):
            raise ModelFileError(f"expected reference outputs with a seed and a runtime, got {self.seed!r}; {_AGAIN}")
        if self.step is not None and not (_is_number(self.step) and self.step > 0):
            raise ModelFileError(f"expected the step of the reference outputs above 0, got {self.step!r}; {_AGAIN}")
        if not _is_number(self.kernels) or self.kernels < 0:
            raise ModelFileError(f"expected kernels of the reference outputs from 0, got {self.kernels!r}; {_AGAIN}")
        object.__setattr__(self, "logits", _rows("logits", self.logits, _is_number))
        object.__setattr__(self, "positive", _rows("positive", self.positive, lambda value: isinstance(value, bool)))
        if [len(row) for row in self.logits] != [len(row) for row in self.positive] or not self.logits:
            raise ModelFileError(f"expected reference outputs with one decision for each logit; {_AGAIN}")

    @property
    def shape(self) -> tuple[int, int]:
        """(n, k)."""
        return len(self.logits), len(self.logits[0])

    def to_dict(self) -> dict[str, Any]:
        """Give the fields as JSON-ready values."""
        rows = {"logits": [list(row) for row in self.logits], "positive": [list(row) for row in self.positive]}
        return {"seed": self.seed, **rows, "step": self.step, "runtime": self.runtime, "kernels": self.kernels}

    @classmethod
    def from_dict(cls, fields: Any) -> ReferenceOutputs:
        """Build the vectors from what `to_dict` gave.

        Raises:
            ModelFileError: an unknown or missing key, or a value of the wrong kind or length.
        """
        known = {"seed", "logits", "positive", "step", "runtime", "kernels"}
        if not isinstance(fields, dict) or set(fields) != known:
            given = sorted(fields) if isinstance(fields, dict) else fields
            raise ModelFileError(f"expected reference outputs with {sorted(known)}, got {given!r}; {_AGAIN}")
        return cls(**fields)


def draw_reference_images(spec: PreprocessSpec, seed: int, count: int = REFERENCE_IMAGES) -> np.ndarray:
    """Draw images of the size that a model takes: uint8 (n, height, width), or (n, height, width, 3) for rgb.

    Whole-number arithmetic on the raw stream of a PCG64, which NumPy promises never to change, and no resampling: the
    same bytes with every version of NumPy and OpenCV. The images differ in far more than noise (brightness, tilt, shape
    of the lungs, round shadows), so that a model that looks at them answers differently to each.
    """
    planes = 3 if spec.color == "rgb" else 1
    images = [_draw(seed * 1_000_003 + number, spec.height, spec.width) for number in range(count * planes)]
    if planes == 1:
        return np.stack(images)
    return np.stack([np.stack(images[3 * number : 3 * number + 3], axis=-1) for number in range(count)])


def _draw(seed: int, height: int, width: int) -> np.ndarray:
    """One plane, uint8 (height, width)."""
    raw = (np.random.PCG64(seed).random_raw(16 + _GRID * _GRID) >> np.uint64(33)).astype(np.int64)
    draws, noise = raw[:16], raw[16:].reshape(_GRID, _GRID) % 32
    down, across = np.mgrid[0:_GRID, 0:_GRID].astype(np.int64) - _GRID // 2
    image = 50 + draws[0] % 130 + (draws[1] % 9 - 4) * down + (draws[2] % 5 - 2) * across
    image = np.where(across**2 < 3 + draws[3] % 8, image + 50, image)
    lung = (np.abs(across) - 6) ** 2 * (2 + draws[4] % 4) + down**2 < 30 + draws[5] % 60
    image = np.where(lung, image // (2 + draws[6] % 3), image)
    for row, column, size in draws[7:16].reshape(3, 3):
        away = (down - row % 17 + 8) ** 2 + (across - column % 17 + 8) ** 2
        image = np.where(away < 2 + size % 10, image + 70, image)
    image = np.clip(image + noise, 0, 255).astype(np.uint8)
    rows, columns = np.arange(height) * _GRID // height, np.arange(width) * _GRID // width
    return np.ascontiguousarray(image[rows][:, columns])


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _rows(name: str, rows: Any, fits: Any) -> tuple[tuple[Any, ...], ...]:
    """Rows of equal length as tuples, or a ModelFileError that names them."""
    if isinstance(rows, Sequence) and all(isinstance(row, list | tuple) for row in rows):
        lengths = {len(row) for row in rows}
        if len(lengths) <= 1 and all(fits(value) for row in rows for value in row):
            return tuple(tuple(row) for row in rows)
    raise ModelFileError(f"expected {name} of the reference outputs as rows of equal length; {_AGAIN}")
