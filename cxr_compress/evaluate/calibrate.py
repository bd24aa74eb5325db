"""From logits on dev to what a model file carries: how they become probabilities, and where a finding begins."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from cxr_compress.device.modelinfo import ModelInfo
from cxr_compress.errors import DataError
from cxr_compress.metrics import ENOUGH_IMAGES, auroc, check_exclusive, choose_threshold, softmax

Array = NDArray[np.float64]

_STEPS = 100
_CONVERGED = 1e-10
_HALVINGS = 30


def fit_platt(labels: Array, logits: Array) -> tuple[float, float] | None:
    """Slope and offset of probability = sigmoid(slope * logit + offset) that make the labels most likely.

    Two numbers cannot change the order of images, so ranking and AUROC stay. Labels count as (n + 1) / (n + 2) and
    1 / (m + 2) instead of 1 and 0, which keeps the slope finite where the logits separate the classes.

    Source: Platt 1999, "Probabilistic outputs for support vector machines", section 2.2; Newton's method with step
    halving as in Lin, Lin and Weng 2007.

    Args:
        labels: (n,) 0 or 1, both present.
        logits: (n,) finite.

    Returns:
        Slope and offset; None where higher logits do not mean more of the finding, so that no slope above 0 fits.
    """
    positives = labels.sum()
    target = np.where(labels == 1, (positives + 1) / (positives + 2), 1 / (len(labels) - positives + 2))
    center, spread = float(logits.mean()), float(logits.std())
    if not spread > 0:
        return None
    scaled = (logits - center) / spread  # one size of step then suits every file
    slope, offset = _minimize(target, scaled)
    if not slope > 0:
        return None
    return slope / spread, offset - slope * center / spread


def _minimize(target: Array, x: Array) -> tuple[float, float]:
    """Where the cross entropy, which is convex, is least."""
    parameters = np.array([0.0, float(np.log(target.mean() / (1 - target.mean())))])
    inputs = np.stack([x, np.ones_like(x)])
    loss = _loss(target, parameters @ inputs)
    for _ in range(_STEPS):
        z = parameters @ inputs
        probability = np.exp(-np.logaddexp(0.0, -z))
        gradient = inputs @ (probability - target)
        weight = probability * (1 - probability)
        # A hair above singular, where all images are far out on the sigmoid's flat ends.
        hessian = (inputs * weight) @ inputs.T + 1e-9 * np.eye(2)
        step = np.linalg.solve(hessian, gradient)
        if float(gradient @ step) < _CONVERGED:
            break
        for halving in range(_HALVINGS):
            tried = parameters - step / 2**halving
            after = _loss(target, tried @ inputs)
            if after < loss:
                parameters, loss = tried, after
                break
        else:
            break
    return float(parameters[0]), float(parameters[1])


def _loss(target: Array, z: Array) -> float:
    """Cross entropy of targets in (0, 1) and logits, without overflow."""
    return float((np.logaddexp(0.0, z) - target * z).sum())


_DOUBLINGS = 60
_TEMPERATURE_HALVINGS = 100


def fit_temperature(labels: Array, logits: Array, offset: Array) -> float | None:
    """Slope s (one over the temperature) of `softmax(s * logits + offset)` that makes the labels most likely.

    Labels count as (n + 1) / (n + k) and 1 / (n + k), n images of the class and k classes, instead of 1 and 0, which
    keeps the slope finite where the logits separate the classes.

    Source: Guo et al. 2017, "On Calibration of Modern Neural Networks" (arXiv 1706.04599), section 4.2; the targets of
    Platt 1999 for more than two classes.

    Args:
        labels: (n, k), one 1 a row.
        logits: (n, k), finite.
        offset: (k,).

    Returns:
        The slope; None where larger logits do not mean more of their class, so that no slope above 0 fits.
    """
    classes = labels.shape[1]
    counts = labels.sum(axis=0)
    rest = 1 / (counts + classes)
    target = labels * (counts * rest) + (labels @ rest)[:, None]
    centered = logits - logits.mean(axis=1, keepdims=True)
    spread = float(centered.std())
    if not spread > 0:
        return None
    unit = centered / spread

    def rise(slope: float) -> float:
        """Derivative of the cross-entropy by the slope; it grows with the slope, as the cross-entropy is convex."""
        return float(((softmax(slope * unit + offset) - target) * unit).sum(axis=1).mean())

    if not rise(0.0) < 0:
        return None
    low, high = 0.0, 1.0
    for _ in range(_DOUBLINGS):
        if rise(high) >= 0:
            break
        low, high = high, 2 * high
    for _ in range(_TEMPERATURE_HALVINGS):
        middle = (low + high) / 2
        low, high = (middle, high) if rise(middle) < 0 else (low, middle)
    return high / spread


# What a file says of thresholds where there are none: the likeliest class is the one.
NO_THRESHOLDS = "not used: the classes exclude one another and the likeliest is predicted"
_UNUSED = 0.5
_CHANCE = 0.5
_TWO_SIDED = 1.96  # deviations of a normal distribution, 95 %


class Calibration(NamedTuple):
    """What turns logits into probabilities and decisions, one number per finding.

    Attributes:
        slope: probability = sigmoid(slope * logit + offset), or one softmax of all classes that exclude one another.
        offset: see slope.
        thresholds: on that probability.
        fitted: whether slope and offset were fitted on images; otherwise only the class weights of the loss are undone.
        falling: whether the finding becomes rarer as its logit rises, by more than chance: then something is wrong.
    """

    slope: tuple[float, ...]
    offset: tuple[float, ...]
    thresholds: tuple[float, ...]
    fitted: tuple[bool, ...] = ()
    falling: tuple[bool, ...] = ()
    activation: str = "sigmoid"

    def source(self, images: str, findings: Sequence[str]) -> str:
        """How slope and offset came about, in words: what a model file says of them.

        Args:
            images: what they were fitted on, in words.
            findings: their names.
        """
        if self.activation == "softmax" and all(self.fitted):
            undone = "; class weights of the training loss undone" if any(self.offset) else ""
            return f"temperature scaling (one slope for all classes) fitted on {images}{undone}"
        plain = [name for name, fitted in zip(findings, self.fitted, strict=True) if not fitted]
        if len(plain) == len(findings):
            return f"class weights of the training loss undone; too few of {images} to fit more"
        text = f"Platt scaling fitted on {images}"
        return f"{text}; of {', '.join(plain)} only the class weights of the training loss undone" if plain else text


def choose_calibration(labels_dev: ArrayLike, logits_dev: ArrayLike, pos_weight: ArrayLike) -> Calibration:
    """Fits slope and offset (`fit_platt`) and picks each threshold, on the dev set and for this very file.

    That corrects over- and underconfidence and what quantization shifts; probabilities refer to the prevalence of the
    dev set. A finding with fewer than `ENOUGH_IMAGES` dev images of either class, or whose logits do not rise with
    it, keeps slope 1; its offset undoes the class weights alone: a loss that counts positives `pos_weight` times
    teaches logits that are log(pos_weight) too high. Thresholds maximize sensitivity + specificity; they come from dev
    alone, carry its sampling error, and must be chosen again for a clinic with other patients or other costs of a
    missed finding.

    Args:
        labels_dev: (n, k), 0 or 1, or nan where unknown.
        logits_dev: (n, k), from the very file that will ship: quantization moves logits.
        pos_weight: (k,) as in the loss; ones for an unweighted loss.

    Raises:
        DataError: shapes disagree, a weight is not above 0, or a finding has one class only in dev.
    """
    labels, logits, weights = _checked_tables(labels_dev, logits_dev, pos_weight)
    pairs = [_fit(labels[:, k], logits[:, k]) for k in range(len(weights))]
    slope = tuple(1.0 if pair is None else pair[0] for pair in pairs)
    offset = tuple(-math.log(weight) if pair is None else pair[1] for pair, weight in zip(pairs, weights, strict=True))
    probabilities = _sigmoid(logits * slope + np.asarray(offset))
    thresholds = tuple(choose_threshold(labels[:, k], probabilities[:, k]) for k in range(len(weights)))
    falling = tuple(_falls(labels[:, k], logits[:, k]) for k in range(len(weights)))
    return Calibration(slope, offset, thresholds, tuple(pair is not None for pair in pairs), falling)


def choose_class_calibration(labels_dev: ArrayLike, logits_dev: ArrayLike, class_weight: ArrayLike) -> Calibration:
    """Fits one slope for all classes that exclude one another (`fit_temperature`), on the dev set and for this file.

    The offsets undo the class weights alone: a loss that counts class i `w_i` times teaches logits that are log(w_i)
    too high. One slope leaves the order of equally weighted classes, and with it the likeliest one, as it was. With
    fewer than `ENOUGH_IMAGES` dev images of known class, or logits that do not rise with their class, the slope stays
    1. There are no thresholds: the likeliest class is predicted.

    Args:
        labels_dev: (n, k), one 1 a row, or NaN where the class is unknown.
        logits_dev: (n, k), from the very file that will ship.
        class_weight: (k,) as in the loss; ones for an unweighted loss.

    Raises:
        DataError: shapes disagree, a weight is not above 0, or an image has no class or several.
    """
    labels, logits, weights = _checked_tables(labels_dev, logits_dev, class_weight)
    known = check_exclusive(labels, where="dev")
    offset = -np.log(weights)
    enough = np.count_nonzero(known) >= ENOUGH_IMAGES and bool(np.isfinite(logits).all())
    slope = fit_temperature(labels[known], logits[known], offset) if enough else None
    count = len(weights)
    shares = softmax(logits + offset)
    return Calibration(
        ((1.0 if slope is None else slope),) * count,
        tuple(float(value) + 0.0 for value in offset),  # + 0.0: no minus zero in a file
        (_UNUSED,) * count,
        (slope is not None,) * count,
        tuple(_falls(labels[:, k], shares[:, k]) for k in range(count)),
        "softmax",
    )


def _checked_tables(
    labels_dev: ArrayLike, logits_dev: ArrayLike, pos_weight: ArrayLike
) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
    """Labels, logits and weights as float64 that belong together, or a DataError."""
    labels, logits = np.asarray(labels_dev, np.float64), np.asarray(logits_dev, np.float64)
    weights = np.asarray(pos_weight, np.float64)
    if labels.shape != logits.shape or labels.shape[1:] != weights.shape or weights.ndim != 1:
        raise DataError(
            f"expected labels and logits (images, findings) and one weight per finding, got {labels.shape}, "
            f"{logits.shape} and {weights.shape}"
        )
    if not (np.isfinite(weights) & (weights > 0)).all():
        raise DataError(f"expected class weights above 0, got {weights.tolist()}")
    return labels, logits, weights


def _fit(labels: NDArray[np.float64], logits: NDArray[np.float64]) -> tuple[float, float] | None:
    """Slope and offset of one finding; None where its images are too few or say nothing."""
    known = np.isfinite(labels)
    if min(np.count_nonzero(labels == value) for value in (0, 1)) < ENOUGH_IMAGES or not np.isfinite(logits).all():
        return None
    return fit_platt(labels[known], logits[known])


def _falls(labels: NDArray[np.float64], logits: NDArray[np.float64]) -> bool:
    """Whether the logits rank below chance by more than chance alone would make them, once in 40 times.

    Source: Mann and Whitney 1947: the variance of an AUROC of m and n images where nothing differs is
    (m + n + 1) / (12 m n).
    """
    known = np.isfinite(labels) & np.isfinite(logits)
    positives, negatives = (int(np.count_nonzero(labels[known] == value)) for value in (1, 0))
    if min(positives, negatives) < ENOUGH_IMAGES:
        return False
    deviation = math.sqrt((positives + negatives + 1) / (12 * positives * negatives))
    return auroc(labels[known], logits[known]) < _CHANCE - _TWO_SIDED * deviation


HELD_OUT = "patients held out of training"


def fit_info(
    info: ModelInfo,
    labels: ArrayLike,
    logits: ArrayLike,
    pos_weight: ArrayLike,
    *,
    images: str,
    held_out: str = HELD_OUT,
    columns: Sequence[int] | None = None,
    force: bool = False,
) -> ModelInfo:
    """The same with slope, offset and threshold of each finding fitted on dev (`choose_calibration`), and said so.

    Of classes that exclude one another one slope is fitted for all (`choose_class_calibration`), and there are no
    thresholds; where the labels are of some classes only, nothing is fitted, since which other one an image has is
    unknown.

    Args:
        info: of the file; findings that are not fitted keep what it says.
        labels: (n, m), 0 or 1, or nan where unknown.
        logits: (n, m) of this very file.
        pos_weight: (m,) of the training loss; ones for an unweighted loss.
        images: what the labels are of, in words.
        held_out: why the images may be used for that, in words.
        columns: (m,) the file's findings that these are; all of them by default.
        force: go on where a finding becomes rarer as its logit rises; its source then says so.

    Raises:
        DataError: as `choose_calibration` and `choose_class_calibration`, or a calibration that falls by more than
            chance.
    """
    columns = range(len(info.labels)) if columns is None else columns
    if info.exclusive:
        return _fit_classes(info, labels, logits, pos_weight, images, list(columns), force)
    chosen = choose_calibration(labels, logits, pos_weight)
    named = [info.labels[column] for column in columns]
    warning = _warn_of_falling(chosen, named, images, info.model_name, force)
    slope, offset, thresholds = (list(own) for own in (info.logit_slope, info.logit_offset, info.thresholds))
    for place, column in enumerate(columns):
        slope[column], offset[column] = chosen.slope[place], chosen.offset[place]
        thresholds[column] = chosen.thresholds[place]
    others = ", ".join(name for column, name in enumerate(info.labels) if column not in set(columns))
    rule = f"largest sensitivity + specificity on {images}, {held_out}; choose your own before any use"
    source = chosen.source(images, named) + warning
    return replace(
        info,
        logit_slope=tuple(slope),
        logit_offset=tuple(offset),
        thresholds=tuple(thresholds),
        threshold_source=f"{rule}; of {others}: {info.threshold_source}" if others else rule,
        calibration_source=f"{source}; of {others}: {info.calibration_source}" if others else source,
    )


_FEWEST_LIKELY = 5.0  # images with and without a finding, counted by the original's probabilities, that a slope needs


def follow_info(
    info: ModelInfo, logits: ArrayLike, theirs: ArrayLike, pos_weight: ArrayLike, *, images: str
) -> ModelInfo:
    """The same with slope and offset fitted so that probabilities follow those of the original model, without labels.

    That leaves the original's thresholds, which are on its probability, as they are. Each finding's cross-entropy
    between the two probabilities is least. Where the original sees hardly an image with, or without, a finding, a slope
    would be fitted to noise: it stays 1, and the offset makes the mean of the logits the original's.

    Args:
        info: of the file, with the original's thresholds.
        logits: (n, k) of this very file.
        theirs: (n, k) of the original model's float file, for the same images.
        pos_weight: (k,) of the loss that the original was trained with; ones for none.
        images: what was answered, in words.
    """
    ours, plain = np.asarray(logits, np.float64), np.asarray(theirs, np.float64)
    target = np.asarray(undo_class_weights(plain, pos_weight, info.activation), np.float64)
    so = f"so that probabilities follow the original model's on {images}; whether those are right was not measured"
    if info.exclusive:
        chosen = choose_class_calibration(target / target.sum(axis=1, keepdims=True), ours, pos_weight)
        how = "temperature scaling (one slope for all classes)" if all(chosen.fitted) else "class weights undone alone"
        return replace(info, logit_slope=chosen.slope, logit_offset=chosen.offset, calibration_source=f"{how}, {so}")
    plain = plain - np.log(np.asarray(pos_weight, np.float64))
    pairs = [_follow(target[:, k], plain[:, k], ours[:, k]) for k in range(len(info.labels))]
    shifted = [name for name, (slope, _) in zip(info.labels, pairs, strict=True) if slope == 1]
    alone = f" (of {', '.join(shifted)} the offset alone, as hardly an image there is on both sides)" if shifted else ""
    return replace(
        info,
        logit_slope=tuple(slope for slope, _ in pairs),
        logit_offset=tuple(offset for _, offset in pairs),
        calibration_source=f"slope and offset fitted{alone} {so}",
    )


def _follow(target: Array, theirs: Array, ours: Array) -> tuple[float, float]:
    """Slope and offset for one finding: probabilities and calibrated logits of the original, logits of the file."""
    center, spread = float(ours.mean()), float(ours.std())
    if min(target.sum(), (1 - target).sum()) >= _FEWEST_LIKELY and spread > 0:
        # In float32 a sure model gives probabilities of exactly 0 and 1.
        slope, offset = _minimize(np.clip(target, _SURE, 1 - _SURE), (ours - center) / spread)
        if slope > 0:
            return slope / spread, offset - slope * center / spread
    return 1.0, float(theirs.mean()) - center


_SURE = 1e-7


def _warn_of_falling(calibration: Calibration, named: Sequence[str], images: str, model: str, force: bool) -> str:
    """What the source of a calibration says of findings that become rarer as their logit rises; "" where none does.

    Raises:
        DataError: there are some, and the user does not force it.
    """
    falling = ", ".join(name for name, falls in zip(named, calibration.falling, strict=True) if falls)
    if falling and not force:
        raise DataError(
            f"the calibration of {falling} falls on {images}: the higher the logit of {model}, the rarer the finding; "
            "most likely its outputs stand in another order, the finding is the other of two classes, or its images "
            "were prepared in another way: correct that, or go on with --force"
        )
    return f"; the calibration of {falling} FALLS: worse than chance" if falling else ""


def _fit_classes(  # noqa: PLR0917 - what `fit_info` was given
    info: ModelInfo,
    labels: ArrayLike,
    logits: ArrayLike,
    weights: ArrayLike,
    images: str,
    columns: list[int],
    force: bool,
) -> ModelInfo:
    """The same with one slope for all classes and offsets that undo the class weights."""
    lacking = [name for column, name in enumerate(info.labels) if column not in columns]
    if lacking:
        source = f"{info.calibration_source}; {images} do not say which images are {', '.join(lacking)}"
        return replace(info, calibration_source=source, threshold_source=NO_THRESHOLDS)
    chosen = choose_class_calibration(labels, logits, weights)
    warning = _warn_of_falling(chosen, [info.labels[column] for column in columns], images, info.model_name, force)
    places = [columns.index(column) for column in range(len(info.labels))]
    return replace(
        info,
        logit_slope=tuple(chosen.slope[place] for place in places),
        logit_offset=tuple(chosen.offset[place] for place in places),
        thresholds=chosen.thresholds,
        threshold_source=NO_THRESHOLDS,
        calibration_source=chosen.source(images, info.labels) + warning,
    )


def fittable(labels: ArrayLike) -> list[int]:
    """The columns of labels (n, k) that hold both a 0 and a 1: of others no threshold can be chosen."""
    values = np.asarray(labels, np.float64)
    return [column for column in range(values.shape[1]) if {0.0, 1.0} <= set(values[:, column])]


def undo_class_weights(logits: ArrayLike, pos_weight: ArrayLike, activation: str = "sigmoid") -> NDArray[np.float32]:
    """Probabilities from the logits of a network whose loss counted positives `pos_weight` times.

    Args:
        logits: (n, k).
        pos_weight: (k,), above 0; ones for an unweighted loss.
        activation: "sigmoid", or "softmax" for classes that exclude one another, each of which counted so many times.

    Returns:
        float32 (n, k); they refer to the prevalence of the training set.
    """
    z = np.asarray(logits, np.float64) - np.log(np.asarray(pos_weight, np.float64))
    return softmax(z).astype(np.float32) if activation == "softmax" else _sigmoid(z)


def _sigmoid(z: NDArray[np.float64]) -> NDArray[np.float32]:
    """In float32, as the device computes it: a threshold must lie between probabilities that can occur there."""
    small = np.exp(-np.abs(z))  # never of a positive number: no overflow at extreme logits
    return (np.where(z >= 0, 1.0, small) / (1.0 + small)).astype(np.float32)
