"""What the numbers that a classifier gives are, found out by trying it: logits, probabilities, or shares of one total.

A graph can hide a sigmoid in many ways; its outputs cannot. Numbers that stay in [0, 1] whatever is fed are
probabilities, and a sigmoid on top of them would be a second one: the worst kind of fault, because its results look
right.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
import numpy.typing as npt

LOGITS, PROBABILITIES, SHARES, CONSTANT = "logits", "probabilities", "shares", "constant"

PROBES = 64
_BATCH = 8
_COARSE = 8
# float32 sums of probabilities, and activations that compute in bfloat16, end a little beside 0 and 1.
_BESIDE = 1e-4
_SAME = 1e-6

Call = Callable[[npt.NDArray[np.float32]], npt.ArrayLike]


def kind_of_outputs(call: Call, input_shape: tuple[int, int, int], *, batch: int = _BATCH) -> str:
    """What a classifier gives, judged by its answers to 64 random and extreme inputs; stops at the first clear one.

    Args:
        call: from float32 (n, height, width, channels) to (n, k).
        input_shape: (height, width, channels).
        batch: images that a call takes, 1 or 8.

    Returns:
        LOGITS where an answer leaves [0, 1]; SHARES where none does and every row of several sums to 1; PROBABILITIES
        where none does; CONSTANT where all answers are the same, or none is finite: then nothing can be told.
    """
    rows: list[npt.NDArray[np.float64]] = []
    with np.errstate(all="ignore"):
        for images in (part for eight in probe_images(input_shape) for part in np.split(eight, _BATCH // batch)):
            outputs = np.asarray(call(images), np.float64).reshape(len(images), -1)
            finite = outputs[np.isfinite(outputs).all(axis=1)]
            if ((finite < -_BESIDE) | (finite > 1 + _BESIDE)).any():
                return LOGITS
            rows.append(finite)
    found = np.concatenate(rows)
    if not len(found) or np.ptp(found, axis=0).max(initial=0.0) < _SAME:
        return CONSTANT
    if found.shape[1] > 1 and (np.abs(found.sum(axis=1) - 1) < _BESIDE).all():
        return SHARES
    return PROBABILITIES


def probe_images(input_shape: tuple[int, int, int]) -> Iterator[npt.NDArray[np.float32]]:
    """64 inputs in batches of 8, the same on every machine: noise and smooth noise from faint to extreme, flat images.

    Every batch has one of each kind, so that few have to be run where the answer is clear.
    """
    rng = np.random.Generator(np.random.PCG64(0))
    height, width, channels = input_shape
    coarse = (-(-height // _COARSE), -(-width // _COARSE), channels)
    for step in range(PROBES // _BATCH):
        smooth = rng.normal(size=coarse).repeat(_COARSE, axis=0).repeat(_COARSE, axis=1)[:height, :width]
        noise = rng.normal(size=(3, height, width, channels))
        flat = np.broadcast_to(rng.normal(scale=10.0**step, size=channels), (height, width, channels))
        batch = (
            *(noise[0], 10.0 * noise[1], 10.0 ** (step - 2) * noise[2]),
            *(rng.uniform(0, 1, input_shape), rng.uniform(0, 255, input_shape)),
            *(2.0 * smooth, 127.5 + 60.0 * smooth, flat),
        )
        yield np.stack(batch).astype(np.float32)
