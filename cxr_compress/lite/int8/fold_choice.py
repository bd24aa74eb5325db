"""Which batch norms to fold for int8: those whose folding costs no precision that shows.

Folding (`fold_scale`) saves an operator and its rounding, but what then is rounded is relu(x + a / m), not m times it:
a channel with a small m takes a wide range, and its neighbours share its steps. One channel with m = 1e-6 would ruin a
layer, and XNNPACK refuses such scales. So the noise that rounding brings into the kernels behind is estimated both
ways, and where folding would raise it to more than four times, the MUL stays.

With y = relu(m x + a), kernels K, steps d of 255 for the range of each tensor, and rounding errors that are uniform
(variance d^2 / 12, not written: it is common to all), the noise that reaches the sums behind is

    as it is:  sum_c [K_c]^2 active_c (d_product^2 + d_y^2)      + sum_o d_o^2 taps sum_c E[y_c^2]
    folded:    sum_c [K_c]^2 m_c^2 active_c d_folded^2           + sum_o d'_o^2 taps sum_c E[y_c^2] / m_c^2

active_c being how often y_c > 0, and d_o = max |K_o| / 127 the step of filter o, d'_o that of the folded one. All of it
follows from one look at y, because relu(x + a / m) = y / m.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import numpy.typing as npt

from cxr_compress.lite.calibration import pick_evenly
from cxr_compress.lite.graph.observe import Observer
from cxr_compress.lite.int8.fold_scale import Foldable, find_foldable

Floats = npt.NDArray[np.float64]
# Of 206 batch norms of four DenseNets trained on X-rays the worst has 3.6, most have less than 1. With all of them
# folded the error of the logits moved by -16 to +26 % (six networks), as chance has it; to leave those above 1.5 alone
# gained 5 % where it was worst. So the limit is not there for those: it catches channels that have all but died.
MOST_NOISE = 4.0
# It asks how wide ranges are, not how they end: a few images do.
_LOOKED_AT = 32
_ACTIVATION_STEPS, _WEIGHT_STEPS = 255, 127


class _Seen:
    """What occurred in one batch norm: sums over the images per channel, and the range of the product."""

    def __init__(self, channels: int) -> None:
        self.images = 0
        self.largest, self.squares, self.active = (np.zeros(channels) for _ in range(3))
        # A quantised range always holds zero.
        self.low = self.high = 0.0

    def add(self, result: np.ndarray, product: np.ndarray) -> None:
        """Take one image's tensors, channels last."""
        self.images += 1
        flat = result.reshape(-1, result.shape[-1])
        self.largest = np.maximum(self.largest, flat.max(axis=0))
        self.squares = self.squares + np.square(flat, dtype=np.float64).mean(axis=0)
        self.active = self.active + (flat > 0).mean(axis=0)
        self.low, self.high = min(self.low, float(product.min())), max(self.high, float(product.max()))


def choose_folds(
    content: bytes,
    images: np.ndarray,
    *,
    num_threads: int = 1,
    most_noise: float = MOST_NOISE,
    progress: Callable[[str], None] | None = None,
) -> frozenset[str]:
    """The batch norms to fold, for `fold_scales(only=...)`.

    Args:
        content: float flatbuffer of batch 1.
        images: (images, height, width, channels); of more than 32 so many are taken, evenly.
        num_threads: for the interpreter; the result does not depend on it.
        most_noise: of a folded batch norm, as a multiple of the noise that it has as it is.
        progress: is told how many were chosen.

    Returns:
        Names as `find_foldable` gives them.
    """
    found = find_foldable(content)
    if not found:
        return frozenset()
    seen = _look(content, found, images[pick_evenly(range(len(images)), _LOOKED_AT)], num_threads)
    chosen = frozenset(
        one.name for one, stats in zip(found, seen, strict=True) if _noise_ratio(one, stats) <= most_noise
    )
    if progress is not None:
        progress(f"{len(chosen)} of {len(found)} batch norms in front of convolutions are folded into those")
    return chosen


def _look(content: bytes, found: list[Foldable], images: np.ndarray, num_threads: int) -> list[_Seen]:
    tensors = [index for one in found for index in (one.result, one.product)]
    observer = Observer(content, tensors, num_threads=num_threads)
    seen = [_Seen(len(one.scale)) for one in found]
    for image in images:
        observer.feed(observer.inputs[0], image[np.newaxis])
        observer.invoke()
        for one, stats in zip(found, seen, strict=True):
            stats.add(observer.view(one.result), observer.view(one.product))
    return seen


def _noise_ratio(one: Foldable, seen: _Seen) -> float:
    """Noise behind a folded batch norm over that behind the same as it is; 1 where nothing gets through either way."""
    scale, active, squares = one.scale, seen.active / seen.images, seen.squares / seen.images
    step = seen.largest.max() / _ACTIVATION_STEPS
    product = (seen.high - seen.low) / _ACTIVATION_STEPS
    folded_step = (seen.largest / scale).max() / _ACTIVATION_STEPS
    plain = folded = 0.0
    for kernel in one.kernels:
        power = np.square(kernel).sum(axis=(0, 1)) * active
        plain += float(power.sum() * (step**2 + product**2) + _of_weights(kernel, squares))
        folded += float((power * scale**2).sum() * folded_step**2 + _of_weights(kernel * scale, squares / scale**2))
    return folded / plain if plain > 0 else 1.0


def _of_weights(kernel: Floats, squares: Floats) -> float:
    steps = np.abs(kernel).max(axis=(1, 2)) / _WEIGHT_STEPS
    return float(np.square(steps).sum() * kernel.shape[1] * squares.sum())
