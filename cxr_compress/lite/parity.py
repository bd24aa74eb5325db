"""Is the file still the model? Both answer the same images, and the answers are compared.

The model is the frozen Keras function as TensorFlow runs it; the file is run by the runtime that devices have.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from cxr_compress.device.interpreter import try_model
from cxr_compress.device.runner import Runner
from cxr_compress.errors import CompressionError, ModelFileError, RuntimeUnavailableError, UnsupportedLayerError
from cxr_compress.lite.calibration import pick_evenly
from cxr_compress.lite.freeze import FrozenFunction
from cxr_compress.lite.int8.layer_snr import decibels
from cxr_compress.metrics import mid_ranks

MOST_IMAGES = 32
# Kernels of int16x8 take some 30 times as long as others.
MOST_IMAGES_INT16 = 8
_SEEDED_IMAGES = 8
# Answers that differ by less than this share of the largest are the rounding of float32 sums, not a difference.
_FLOAT_NOISE = 1e-5
_COARSE = 8
NOISE = "seeded noise"
# A rank correlation over fewer images is chance.
_RANKED = 8

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Parity:
    """The answers of a file beside those of the model it was made from; `k` is the number of findings.

    Attributes:
        images: how many both answered.
        source: "calibration images", or "seeded noise" where there were none, which says less: a network that has
            never seen noise may treat all of it alike.
        mse: mean squared difference of the logits.
        snr_db: sum of the squared logits by the sum of the squared differences, in decibels.
        cosine: of all logits of the one and all of the other, as two vectors.
        spearman: k rank correlations over the images, ties averaged; None where one side gave a single answer.
        variance: k variances of the file's logits over the images.
        model_variance: k variances of the model's.
        codes: k numbers of different answers that the file gave.
        runtime: what ran the file.
    """

    images: int
    source: str
    mse: float
    snr_db: float
    cosine: float
    spearman: tuple[float | None, ...]
    variance: tuple[float, ...]
    model_variance: tuple[float, ...]
    codes: tuple[int, ...]
    runtime: str

    @property
    def lowest_spearman(self) -> float | None:
        """Of all findings that have one."""
        return min((value for value in self.spearman if value is not None), default=None)

    @property
    def constant(self) -> tuple[int, ...]:
        """The outputs that gave one and the same answer to all images, where there were several."""
        return tuple(place for place, codes in enumerate(self.codes) if codes == 1) if self.images > 1 else ()

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready; an infinite ratio is None."""
        return asdict(self) | {"snr_db": self.snr_db if math.isfinite(self.snr_db) else None}

    def to_text(self, labels: Sequence[str] = ()) -> str:
        """One line to read; findings are numbered where they are not named."""
        lowest = self.lowest_spearman
        rank = "" if lowest is None else f", rank correlation {lowest:.4f} or more"
        dumb = [labels[place] if labels else str(place + 1) for place in self.constant]
        alike = f"; finding {', '.join(dumb)} has one answer to all" if dumb else ""
        return (
            f"against the model on {self.images} of the {self.source}: {self.snr_db:.1f} dB, mean squared difference "
            f"{self.mse:.3g}, cosine {self.cosine:.6f}{rank}, {min(self.codes)} or more different answers a finding"
            f"{alike}"
        )


@dataclass(frozen=True)
class Reference:
    """Images and the model's answers to them.

    Attributes:
        images: as the files take them, (images, height, width, channels).
        logits: float64 (images, k).
        source: as `Parity.source`.
    """

    images: np.ndarray
    logits: Floats
    source: str


def answer(frozen: FrozenFunction, images: np.ndarray | None, *, pixels: bool = False) -> Reference:
    """What the model says: on up to MOST_IMAGES of the images, spread evenly, or on a few drawn from a seed.

    Args:
        frozen: the function that the files are made of.
        images: calibration images, if there are any.
        pixels: the function takes pixel values; the files take them as uint8.
    """
    import tensorflow as tf

    source = "calibration images" if images is not None else NOISE
    if images is None:
        images = seeded_images(frozen.input_shape[1:], pixels=pixels or frozen.pixel_input)
        images = images if pixels else images.astype(np.float32)
    chosen = images[pick_evenly(range(len(images)), MOST_IMAGES)]
    logits = []
    for image in chosen:
        outputs = frozen.function(tf.constant(image[np.newaxis], tf.float32))
        logits.append(tf.nest.flatten(outputs)[0].numpy()[0])
    return Reference(chosen, np.asarray(logits, np.float64).reshape(len(chosen), -1), source)


def seeded_images(shape: tuple[int, ...], *, pixels: bool = False) -> np.ndarray:
    """A few images of smooth noise, each with its own brightness and contrast; the same on every machine.

    Args:
        shape: (height, width, channels).
        pixels: uint8 of 0 to 255, else float32 around 0.
    """
    rng = np.random.Generator(np.random.PCG64(0))
    height, width, channels = shape
    coarse = rng.normal(size=(_SEEDED_IMAGES, -(-height // _COARSE), -(-width // _COARSE), channels))
    smooth = coarse.repeat(_COARSE, axis=1).repeat(_COARSE, axis=2)[:, :height, :width]
    level, contrast = rng.normal(size=(2, _SEEDED_IMAGES, 1, 1, 1))
    images = smooth * (0.3 + np.abs(contrast)) + level
    if pixels:
        return np.clip(np.rint(128 + 40 * images), 0, 255).astype(np.uint8)
    return images.astype(np.float32)


def measure_parity(
    content: bytes,
    reference: Reference,
    *,
    most: int = MOST_IMAGES,
    num_threads: int = 1,
    side_by_side: bool = False,
) -> Parity:
    """Run a file on the images of a reference and compare.

    Args:
        content: the flatbuffer.
        reference: what the model said.
        most: images to run at most, spread evenly.
        num_threads: for the interpreter. It does not change the result.
        side_by_side: run so many images at once, each on one thread, for kernels that would not share one out; takes
            the memory of so many interpreters.

    Raises:
        RuntimeUnavailableError: the runtime here cannot run the file.
    """
    chosen = pick_evenly(range(len(reference.images)), most)
    workers = num_threads if side_by_side else 1
    runners = [Runner(content, num_threads=num_threads // workers) for _ in range(min(workers, len(chosen)))]
    runner = runners[0]
    with ThreadPoolExecutor(len(runners)) as pool:
        shares = np.array_split(reference.images[chosen], len(runners))
        stored = np.concatenate(list(pool.map(lambda one, share: one.stored(share), runners, shares)))
    stored = stored.reshape(len(chosen), -1)
    logits = runner.output.decode(stored).astype(np.float64)
    return compare_answers(logits, reference.logits[chosen], reference.source, runner.runtime)


def compare_answers(logits: np.ndarray, exact: np.ndarray, source: str, runtime: str) -> Parity:
    """Compare the logits (images, k) of a file with those of the model, or of the float file, that it was made from.

    Args:
        logits: of the file.
        exact: of what it is compared with.
        source: what images they answer, in words.
        runtime: what ran the file.
    """
    logits, exact = np.asarray(logits, np.float64), np.asarray(exact, np.float64)
    error = logits - exact
    return Parity(
        images=len(logits),
        source=source,
        mse=float(np.square(error).mean()),
        snr_db=decibels(float(np.square(exact).sum()), float(np.square(error).sum())),
        cosine=_cosine(logits, exact),
        spearman=tuple(spearman(ours, theirs) for ours, theirs in zip(logits.T, exact.T, strict=True)),
        variance=tuple(logits.var(axis=0).tolist()),
        model_variance=tuple(exact.var(axis=0).tolist()),
        codes=tuple(len(np.unique(column)) for column in logits.T),
        runtime=runtime,
    )


def require_runs(content: bytes, quant_type: str) -> None:
    """Refuse a file that crashes the runtime, before it runs in this process.

    A runtime that says that it cannot run the file, or none at all, is no crash: `measure_parity` reports it.

    Raises:
        UnsupportedLayerError: it crashes; the message names the operator and its layer.
    """
    try:
        try_model(content)
    except ModelFileError as error:
        raise UnsupportedLayerError(f"{quant_type} is not written: {error}") from error
    except RuntimeUnavailableError:
        pass


def require_answers(parity: Parity, reference: Reference, quant_type: str, *, force: bool = False) -> None:
    """Refuse a file that gives one and the same answer where the model tells the images apart, or answers unlike it.

    One finding without variation is no reason yet: next to others that vary widely, its own differences may be finer
    than the step they share. It is named in the text of the parity.

    Args:
        parity: the answers of the file beside the model's.
        reference: what the model said.
        quant_type: of the file.
        force: let a file pass whose answers are unlike the model's.

    Raises:
        CompressionError: not one finding varies, or the error is as large as the signal, or a finding's images rank
            in no order, or in the opposite one, of the model's.
    """
    logits = reference.logits[pick_evenly(range(len(reference.logits)), parity.images)]
    spread, largest = np.ptp(logits, axis=0), np.abs(logits).max()
    told_apart = bool((spread > _FLOAT_NOISE * largest).any())
    problem = _below_the_floor(parity) if told_apart else _constant(parity)
    if told_apart and all(codes == 1 for codes in parity.codes):
        raise CompressionError(
            f"{quant_type} is not written: it answers the same to everything, {parity.images} images on which the "
            f"model's logits differ by up to {spread.max():.3g}: calibrate on images like those the model is for, or "
            "choose a finer quant type"
        )
    if problem and not force:
        raise CompressionError(f"{quant_type} is not written: {problem}; or go on with --force")


def _constant(parity: Parity) -> str:
    """What is wrong with a model that does not tell images apart; "" for noise, of which it need not know anything."""
    if parity.images < _RANKED or parity.source == NOISE:
        return ""
    return f"the model itself answers the same to all {parity.images} {parity.source}: check its weights and the images"


def _below_the_floor(parity: Parity) -> str:
    """What is wrong with answers that no rounding explains; "" for nothing."""
    if not parity.snr_db > 0:
        return (
            f"its logits differ from the model's by as much as they are worth ({parity.snr_db:.1f} dB on "
            f"{parity.images} images): choose another quant type"
        )
    if parity.images < _RANKED:
        return ""
    largest = max(parity.model_variance)
    opposite = [
        f"{place + 1} ({value:.2f})"
        for place, value in enumerate(parity.spearman)
        if value is not None and value <= 0 and parity.model_variance[place] > _FLOAT_NOISE * largest
    ]
    if opposite:
        return (
            f"it ranks {parity.images} images unlike the model does: rank correlation of output {', '.join(opposite)}, "
            "0 or less: choose another quant type"
        )
    return ""


def spearman(first: np.ndarray, second: np.ndarray) -> float | None:
    """Rank correlation of two series, equal values sharing the mean of their ranks; None where one has no variation.

    Source: C. Spearman, The proof and measurement of association between two things, 1904: Pearson's correlation of
    the ranks.
    """
    ours, theirs = (mid_ranks(series) for series in (first, second))
    ours, theirs = ours - ours.mean(), theirs - theirs.mean()
    norm = math.sqrt(float(ours @ ours) * float(theirs @ theirs))
    return float(ours @ theirs) / norm if norm > 0 else None


def _cosine(first: Floats, second: Floats) -> float:
    """1 where both are all zero: nothing differs."""
    norm = float(np.linalg.norm(first) * np.linalg.norm(second))
    if norm == 0:
        return 1.0 if not (first.any() or second.any()) else 0.0
    return float((first * second).sum()) / norm
