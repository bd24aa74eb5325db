"""The choices of one run and what they must not be."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from typing import Any

from cxr_compress.errors import CompressionError
from cxr_compress.recipe.choices import AUGMENT, CHOICES, COUNTS, NOT_NEGATIVE, RATES

RECIPE_FORMAT = 1

# What runs had on the machines that this was measured on; a recipe without the field means it.
DEFAULT_THREADS = 2

_CRITERIA_ON_IMAGES = ("taylor", "apoz", "lasso")


@dataclass(frozen=True)
class Recipe:
    """The choices of one run; together with the data and the seed they fix the bytes of its files.

    Attributes:
        model: the architecture to build, or the name to give a model that comes from a file.
        dataset: the name of a set, as ``data.DATASETS`` has them.
        input_size: height and width of the model's input, pixels.
        epochs: training epochs of the original model; not used when the model comes from a file.
        learning_rate: of that training.
        batch_size: images per step in every training.
        augment: how far training images are changed, where that is not as usual: any of AUGMENT -> range (mirror: 1),
            as ``train.AugmentRanges`` has them. With what the original model was trained with, a pruned one keeps its
            poise on images that are exposed or turned in another way.
        weight_decay: of every training, decoupled.
        label_smoothing: of every training: share by which labels move towards 0.5.
        dev_fraction: share of the training patients set aside for every choice.
        allow_missing: go on with a part of the images that the set's official list names (nih only).
        options: what the reader of the set takes besides, as ``data.load_dataset`` does.
        target_macs: MACs that may stay: a float up to 1.0 is a fraction, a larger number absolute; None for no bound.
        target_params: the same for parameters.
        target_bytes: the same for the bytes of the int8 file, metadata included.
        target_latency_ms: the same for milliseconds per image, on the machine whose layer times the run is given, or
            on this one; a latency below 1 ms can only be given as a fraction.
        criterion: how filters are scored: from the weights ("l1", "l2", "geometric_median", "bn_scale"), from training
            images ("taylor", with their labels; "apoz"; "lasso", meant for the local scope), or "random", the baseline.
        scoring_images: training images that the last three look at.
        group_reduction: how the layers of a group combine: "sum", "mean" or "max".
        normalizer: what a group's scores are divided by: "mean", "max" or "none".
        scope: "global" ranks all filters together, "local" takes the same share of every layer, "sensitivity" takes
            first what changes the outputs least for what it saves.
        sensitivity_images: training images on which that is measured.
        round_to: layers that lose filters keep a multiple of this.
        min_channels: no layer keeps fewer filters.
        max_removed_fraction: no layer loses more than this share of its filters.
        overrides: another such share for some layers: regular expression -> share; the last match counts.
        exclude: regular expressions of layers that keep all their filters.
        allow_inexact: remove channels that a LayerNormalization takes statistics over; fine-tuning must make up for it.
        removal_steps: in how many steps filters go; after each the batch norms are re-estimated and all scored anew.
        reconstruct: refit by least squares the layers that lost inputs, so that they give again what they gave;
            without it the batch norms of the pruned model are re-estimated, which recovers less.
        reconstruction_images: training images for that.
        recalibration_images: training images that re-estimate batch norms.
        from_scratch: draw the weights of the pruned model anew instead of keeping and repairing them: the baseline
            that says what the kept weights are worth (Liu et al. 2019).
        recovery_epochs: fine-tuning epochs of the pruned model.
        recovery_learning_rate: of that fine-tuning.
        schedule_epochs: above 0, its rate follows the last epochs of a schedule of this length (learning-rate
            rewinding); 0 is a schedule of its own, with warm-up.
        distill_weight: share of every fine-tuning loss that pulls towards the original model instead of the labels.
        feature_weight: weight of the distance between the last feature maps of the two, in fine-tuning.
        ema_decay: of the running average of weights in fine-tuning; 0 keeps the weights themselves.
        weight_sparsity: share of the remaining weights to set to zero, in [0, 1).
        weight_threshold: instead of a share, the magnitude below which a weight goes; None for a share.
        threshold_unit: of that: "absolute", or "std", standard deviations of the weight's layer.
        sparsity_allocation: how a share spreads over layers: "layer", the same everywhere; "global", the smallest
            weights of the network; "erk", more where layers are large (Evci et al. 2020).
        sparsity_schedule: how it grows: "constant" (at once), "polynomial" or "cubic" (fast at first).
        sparsity_power: the exponent of "polynomial".
        initial_sparsity: where "polynomial" and "cubic" start.
        sparsity_pattern: "unstructured", "2:4" (half of all, at once) or "block".
        sparsity_block: (rows, columns) of a block of "block", inputs by outputs.
        sparsity_epochs: epochs in which they go and the others make up for it.
        sparsity_learning_rate: of those epochs.
        finetune_epochs: fine-tuning epochs after that, zeros held.
        finetune_learning_rate: of those.
        quant_type: of the compressed file, one of QUANT_TYPES. int16x8 is nearly as exact as float, but runs, and is
            scored, on reference kernels that take about 30 times as long.
        calibration_images: training images that fix the ranges of an int8 file.
        calibration_method: how they do: "minmax", "percentile" or "mse".
        percentile: of the values that stay inside a range at either end, for "percentile".
        bias_correction: take the mean error that rounding the weights makes out of the biases.
        equalize: first even out the ranges of the channels of consecutive layers, where that is exact.
        auto_fallback: leave so many layers in float, those that int8 hurts most; int8_float_io only.
        qat: train with the rounding of int8 in the loop: "auto" where int8 loses more on dev than it may, "never",
            "always".
        qat_epochs: of that training.
        qat_learning_rate: of that training.
        max_auroc_drop: how much AUROC the compressed file may lose; by the same measure on dev int8 may lose.
        margin: of non-inferiority: the upper bound of the loss must lie below it.
        labels: names of the outputs of a given model in their order, where its file does not say them.
        positive: of two classes that exclude one another the finding, by its label or its index; "" otherwise.
        preset: how pixels become the input of a given model, where its file does not say it; "" otherwise.
        color: "gray" or "rgb", what images it is for; "" for what its file says, or gray.
        match: "name": its outputs and the findings of the data set belong together by name; "position": in order.
        force: go on where a check says that the result would be worthless; what it said is in the report.
        bootstrap_samples: resamples of patients behind each confidence interval.
        seed: of everything that draws.
        threads: that TensorFlow computes with. Sums are cut up among them, so that another number gives other last bits
            and in the end other bytes, on a machine of however many cores.
    """

    model: str = "tiny_chexnet"
    dataset: str = "kermany"
    input_size: int = 64
    epochs: int = 10
    learning_rate: float = 2e-3
    batch_size: int = 32
    augment: Mapping[str, float] = field(default_factory=dict)
    weight_decay: float = 0.0
    label_smoothing: float = 0.0
    dev_fraction: float = 0.1
    allow_missing: bool = False
    options: Mapping[str, str] = field(default_factory=dict)
    target_macs: float | None = 0.5
    target_params: float | None = None
    target_bytes: float | None = None
    target_latency_ms: float | None = None
    criterion: str = "l1"
    scoring_images: int = 512
    group_reduction: str = "sum"
    normalizer: str = "mean"
    scope: str = "global"
    sensitivity_images: int = 64
    round_to: int = 8
    min_channels: int = 1
    max_removed_fraction: float = 0.75
    overrides: Mapping[str, float] = field(default_factory=dict)
    exclude: tuple[str, ...] = ()
    allow_inexact: bool = False
    removal_steps: int = 1
    reconstruct: bool = True
    reconstruction_images: int = 512
    recalibration_images: int = 512
    from_scratch: bool = False
    recovery_epochs: int = 4
    recovery_learning_rate: float = 1e-3
    schedule_epochs: int = 0
    distill_weight: float = 0.5
    feature_weight: float = 0.0
    ema_decay: float = 0.0
    weight_sparsity: float = 0.5
    weight_threshold: float | None = None
    threshold_unit: str = "absolute"
    sparsity_allocation: str = "layer"
    sparsity_schedule: str = "cubic"
    sparsity_power: float = 3.0
    initial_sparsity: float = 0.0
    sparsity_pattern: str = "unstructured"
    sparsity_block: tuple[int, int] = (1, 4)
    sparsity_epochs: int = 4
    sparsity_learning_rate: float = 5e-4
    finetune_epochs: int = 0
    finetune_learning_rate: float = 2e-4
    quant_type: str = "int8"
    calibration_images: int = 128
    calibration_method: str = "mse"
    percentile: float = 99.999
    bias_correction: bool = False
    equalize: bool = False
    auto_fallback: int = 0
    qat: str = "auto"
    qat_epochs: int = 1
    qat_learning_rate: float = 5e-5
    max_auroc_drop: float = 0.005
    margin: float = 0.01
    labels: tuple[str, ...] = ()
    positive: str = ""
    preset: str = ""
    color: str = ""
    match: str = "name"
    force: bool = False
    bootstrap_samples: int = 1000
    seed: int = 0
    threads: int = DEFAULT_THREADS

    def __post_init__(self) -> None:
        """Check what no later stage can check better.

        Raises:
            CompressionError: a value outside its range.
        """
        for name in COUNTS:
            _require(getattr(self, name) >= 1, name, "1 or more", getattr(self, name))
        for name, choices in CHOICES.items():
            _require(getattr(self, name) in choices, name, f"one of {', '.join(choices)}", repr(getattr(self, name)))
        for name in NOT_NEGATIVE:
            _require(getattr(self, name) >= 0, name, "0 or more", getattr(self, name))
        for name in RATES:
            _require(getattr(self, name) > 0, name, "above 0", getattr(self, name))
        if self.target_bytes is not None:
            expected = "one of int8, int8_float_io with target_bytes, which counts the bytes of int8 files"
            _require(self.quantizes, "quant_type", expected, repr(self.quant_type))
        self._check_removal()
        self._check_training()
        self._check_quantization()

    def _check_removal(self) -> None:
        _require(self.sensitivity_images > 1, "sensitivity_images", "2 or more", self.sensitivity_images)
        _require(0 <= self.max_removed_fraction <= 1, "max_removed_fraction", "in [0, 1]", self.max_removed_fraction)
        for pattern, share in self.overrides.items():
            _require(0 <= share <= 1, f"the share of override {pattern!r}", "in [0, 1]", share)
        for pattern in (*self.overrides, *self.exclude):
            _require(_compiles(pattern), "a layer pattern", "a regular expression", repr(pattern))

    def _check_training(self) -> None:
        _require(0 <= self.label_smoothing < 1, "label_smoothing", "in [0, 1)", self.label_smoothing)
        for name, size in self.augment.items():
            _require(name in AUGMENT, "the names in augment", f"of {', '.join(AUGMENT)}", repr(name))
            _require(0 <= size < math.inf, f"augment {name}", "0 or a positive number", size)
        _require(0 <= self.distill_weight <= 1, "distill_weight", "in [0, 1]", self.distill_weight)
        _require(0 <= self.ema_decay < 1, "ema_decay", "in [0, 1)", self.ema_decay)
        _require(0 <= self.weight_sparsity < 1, "weight_sparsity", "in [0, 1)", self.weight_sparsity)
        if self.weight_threshold is not None:
            _require(self.weight_threshold > 0, "weight_threshold", "above 0", self.weight_threshold)
            expected = "0 beside weight_threshold: give a share or a threshold, not both"
            _require(not self.weight_sparsity, "weight_sparsity", expected, self.weight_sparsity)
        block = self.sparsity_block
        pair = len(block) == 2 and all(isinstance(side, int) and side >= 1 for side in block)  # noqa: PLR2004
        _require(pair and max(block) > 1, "sparsity_block", "two whole numbers that make a block, as (1, 4)", block)
        if self.sparsity_pattern == "2:4":
            _require(self.weight_sparsity == 0.5, "weight_sparsity", "0.5 with 2:4", self.weight_sparsity)  # noqa: PLR2004
        if self.zeroes_weights:
            _require(self.sparsity_epochs >= 1, "sparsity_epochs", "1 or more to zero weights", self.sparsity_epochs)
        if self.schedule_epochs:
            expected = f"0, or at least the {self.recovery_epochs} epochs of recovery, whose end they are"
            _require(self.schedule_epochs >= self.recovery_epochs, "schedule_epochs", expected, self.schedule_epochs)
        if self.from_scratch:
            expected = "1 or more with from_scratch, which starts from random weights"
            _require(self.recovery_epochs >= 1, "recovery_epochs", expected, self.recovery_epochs)

    def _check_quantization(self) -> None:
        _require(50 < self.percentile <= 100, "percentile", "above 50 and up to 100", self.percentile)  # noqa: PLR2004
        if self.auto_fallback:
            expected = "int8_float_io with auto_fallback, which leaves layers in float"
            _require(self.quant_type == "int8_float_io", "quant_type", expected, repr(self.quant_type))
        if self.qat == "always":
            _require(self.quantizes, "quant_type", "int8 or int8_float_io with qat=always", repr(self.quant_type))

    @property
    def quantizes(self) -> bool:
        """Whether the compressed file computes in int8."""
        return self.quant_type in ("int8", "int8_float_io")

    @property
    def calibrates(self) -> bool:
        """Whether calibration images shape the compressed file."""
        return self.quantizes or self.quant_type == "int16x8"

    @property
    def zeroes_weights(self) -> bool:
        """Whether weights are set to zero."""
        return bool(self.weight_sparsity) or self.weight_threshold is not None

    @property
    def removes_filters(self) -> bool:
        """Whether a budget asks for a thinner model."""
        return bool(self.budget)

    @property
    def budget(self) -> dict[str, float]:
        """The bounds that ask for less than the whole, by the names that a budget has for them."""
        bounds = {
            "macs": self.target_macs,
            "params": self.target_params,
            "tflite_bytes": self.target_bytes,
            "latency_ms": self.target_latency_ms,
        }
        return {name: bound for name, bound in bounds.items() if bound is not None and bound != 1.0}

    @property
    def scores_on_images(self) -> bool:
        """Whether the criterion looks at images, and not at weights alone."""
        return self.criterion in _CRITERIA_ON_IMAGES

    @property
    def name(self) -> str:
        """What the compressed model is called: tiny_chexnet_m50_w50_int8 = half the MACs, half the weights zero.

        h1sd instead of w50: all weights below one standard deviation of their layer.
        """
        letters = {"macs": "m", "params": "p", "tflite_bytes": "b", "latency_ms": "t"}
        parts = [self.model, *(letters[name] + _short(bound) for name, bound in self.budget.items())]
        if self.weight_sparsity:
            parts.append("w" + _short(self.weight_sparsity))
        if self.weight_threshold is not None:
            parts.append(f"h{self.weight_threshold:g}" + ("sd" if self.threshold_unit == "std" else ""))
        if self.from_scratch:
            parts.append("scratch")
        return "_".join([*parts, self.quant_type])

    def to_dict(self) -> dict[str, Any]:
        """The fields and the format, ready for JSON."""
        changed: dict[str, Any] = {name: dict(getattr(self, name)) for name in ("overrides", "options", "augment")}
        changed |= {name: list(getattr(self, name)) for name in ("exclude", "sparsity_block", "labels")}
        return {"format": RECIPE_FORMAT, **asdict(self), **changed}

    def to_json(self) -> str:
        """The recipe as a JSON text."""
        return json.dumps(self.to_dict(), indent=2) + "\n"

    def changed(self, changes: Mapping[str, Any]) -> Recipe:
        """A copy with other values; lists and tables may come as JSON and flags have them.

        Raises:
            CompressionError: an unknown field, a value of the wrong type or outside its range.
        """
        known = {field.name for field in fields(self)}
        unknown = sorted(set(changes) - known)
        if unknown:
            raise CompressionError(f"unknown in a recipe: {', '.join(unknown)}; known are {', '.join(sorted(known))}")
        values = dict(changes)
        try:
            for name in {"exclude", "sparsity_block", "labels"} & set(values):
                values[name] = tuple(values[name])
            for name in {"overrides", "augment"} & set(values):
                values[name] = {str(key): float(number) for key, number in values[name].items()}
            if "options" in values:
                values["options"] = {str(name): str(value) for name, value in values["options"].items()}
            return replace(self, **values)
        except (TypeError, ValueError, AttributeError) as error:
            raise CompressionError(f"a value in the recipe has the wrong type: {error}") from error

    @classmethod
    def from_json(cls, text: str) -> Recipe:
        """The inverse of `to_json`.

        Raises:
            CompressionError: not a recipe, an unknown key, or one of a newer format.
        """
        try:
            values = json.loads(text)
        except ValueError as error:
            raise CompressionError(f"expected a recipe as JSON; could not read it: {error}") from error
        if not isinstance(values, dict) or values.pop("format", None) != RECIPE_FORMAT:
            raise CompressionError(f'expected a recipe with "format": {RECIPE_FORMAT}; see the recipe.json of a run')
        return cls().changed(values)


def _short(bound: float) -> str:
    """0.5 -> 50, 0.125 -> 12.5, 1200000 -> 1200000, 7.5 -> 7.5."""
    if isinstance(bound, float) and bound <= 1:
        return f"{bound * 100:g}"
    return str(int(bound)) if bound == int(bound) else f"{bound:g}"


def _compiles(pattern: str) -> bool:
    try:
        re.compile(pattern)
    except re.error:
        return False
    return True


def _require(holds: bool, name: str, expected: str, value: object) -> None:
    if not holds:
        raise CompressionError(f"expected {name} to be {expected}; got {value}")
