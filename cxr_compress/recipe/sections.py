"""The sections of a recipe: every choice of a run, with its default, bounds, choices and help.

No section holds a path or a time: these are the choices that decide the bytes of a run's files, together with the data.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field

from cxr_compress.device.spec import PRESETS as PIXEL_PRESETS
from cxr_compress.quant_types import QUANT_TYPES, TYPES
from cxr_compress.recipe.fields import Section, option, provided, register_section

DEFAULT_THREADS = 2

_TWO_OF_FOUR = 0.5


def _datasets() -> tuple[str, ...]:
    """The readers that there are, a plug-in's too; loaded when they are asked for, as they bring OpenCV."""
    from cxr_compress.data import DATASETS

    return tuple(DATASETS)


@dataclass(frozen=True)
class ModelSection(Section):
    """The original model: what is built, or what a model from a file means."""

    name: str = option(
        "tiny_chexnet",
        "Architecture to build and train, or the name to give a model that comes from a file.",
        flag="model",
        choices=provided("architecture"),
        open_choices=True,
        common=True,
    )
    input_size: int = option(
        64, "Height and width of the model's input, pixels; a model from a file brings its own.", at_least=1
    )
    labels: tuple[str, ...] = option(
        (),
        "Names of the model's outputs in their order, where its file does not say them; of two classes that exclude "
        "one another both, or the finding alone.",
    )
    positive: str = option(
        "", "Which of two classes that exclude one another is the finding: its label, or its index 0 or 1."
    )
    preset: str = option(
        "",
        "How pixels become the model's input, as it was trained, where its file does not say it: imagenet_torch "
        "(CheXNet, Keras' DenseNet), unit (x / 255), tf (x / 127.5 - 1), caffe (ResNet50, VGG), xrv or raw (0 to 255).",
        choices=tuple(PIXEL_PRESETS),
    )
    color: str = option(
        "",
        "Whether the model is for gray or rgb images, where its file does not say it; a new model is for such as the "
        "data set has, another for gray ones unless given.",
        choices=("gray", "rgb"),
    )
    match: str = option(
        "name",
        "How outputs of the model and findings of the data set belong together: by name, or by position in their "
        "order.",
        choices=("name", "position"),
    )


@dataclass(frozen=True)
class DataSection(Section):
    """The data set, and how it is read."""

    dataset: str = option("kermany", "How --data_dir is read.", choices=_datasets, common=True)
    dev_fraction: float = option(
        0.1,
        "Share of the training patients set aside as dev, on which every choice is made; sets with a dev split of "
        "their own keep that.",
        above=0,
        below=1,
    )
    allow_missing: bool = option(
        False, "Go on with a part of the images that the data set's official list names (nih only)."
    )
    options: Mapping[str, str] = option(dict, "Options of the data set's reader, as name=value,...")


@dataclass(frozen=True)
class AugmentRanges(Section):
    """How far training images are changed: every amount is drawn evenly from plus or minus its range.

    Unless asked for there is no mirror image among them: a mirrored chest has its heart on the wrong side, which is a
    finding.
    """

    shift: float = option(
        0.06,
        "Largest random shift of training images, either way, as a fraction of the side.",
        flag="augment_shift",
        at_least=0,
    )
    rotation: float = option(
        7.0, "Largest random rotation of training images, either way, degrees.", flag="augment_rotation", at_least=0
    )
    scale: float = option(
        0.08,
        "Largest random change of size of training images, either way, as a fraction.",
        flag="augment_scale",
        at_least=0,
    )
    contrast: float = option(
        0.15,
        "Largest random change of contrast of training images, either way, as a fraction.",
        flag="augment_contrast",
        at_least=0,
    )
    brightness: float = option(
        15.0,
        "Largest random change of brightness of training images, either way, gray levels of 255.",
        flag="augment_brightness",
        at_least=0,
    )
    gamma: float = option(
        0.0,
        "Largest random bend of the gray values of training images, either way, as the logarithm of the exponent.",
        flag="augment_gamma",
        at_least=0,
    )
    mirror: bool = option(
        False, "Mirror every other training image; never for chests, it moves the heart.", flag="augment_mirror"
    )


@dataclass(frozen=True)
class TrainingSection(Section):
    """Training of the original model, and what every later training shares with it."""

    epochs: int = option(10, "Training epochs of the original model; not used for a model from a file.", at_least=1)
    learning_rate: float = option(2e-3, "Highest learning rate in the training of the original model.", above=0)
    batch_size: int = option(32, "Images per step in every training.", at_least=1)
    weight_decay: float = option(0.0, "Decoupled weight decay (AdamW) of every training; 0 for none.", at_least=0)
    label_smoothing: float = option(
        0.0, "Share by which labels move towards 0.5 in every training.", at_least=0, below=1
    )
    augment: AugmentRanges = field(default_factory=AugmentRanges)


@dataclass(frozen=True)
class BudgetSection(Section):
    """What may stay of the original model; all bounds that are given hold."""

    macs: int | float | None = option(
        0.5,
        "Multiply-accumulates that may stay: a fraction such as 0.5, a number above 1, or none for no bound.",
        flag="target_macs",
        above=0,
        common=True,
    )
    params: int | float | None = option(
        None,
        "Parameters that may stay: a fraction such as 0.5, a number above 1, or none for no bound.",
        flag="target_params",
        above=0,
    )
    tflite_bytes: int | float | None = option(
        None,
        "Bytes of the int8 .tflite file, metadata included: 1MB, 640kB, 1000000, or a fraction such as 0.25.",
        flag="target_bytes",
        above=0,
        units={"KB": 1_000, "MB": 1_000_000},
        common=True,
    )
    latency_ms: int | float | None = option(
        None,
        "Milliseconds per image: a number above 1, or a fraction such as 0.5; by the layer times of --latency_table, "
        "or those measured on this machine.",
        flag="target_latency_ms",
        above=0,
    )

    @property
    def bounds(self) -> dict[str, float]:
        """The bounds that ask for less than the whole, by name."""
        return {key: bound for key, bound in self.to_dict().items() if bound is not None and bound != 1.0}


@dataclass(frozen=True)
class RemovalSection(Section):
    """Removal of filters: how many go, and which."""

    budget: BudgetSection = field(default_factory=BudgetSection)
    criterion: str = option(
        "l1",
        "How filters are scored; the highest stay.",
        choices=provided("criterion"),
    )
    scoring_images: int = option(512, "Training images that taylor, apoz and lasso score filters by.", at_least=1)
    group_reduction: str = option(
        "sum", "How the scores of layers that lose the same filters combine.", choices=("sum", "mean", "max")
    )
    normalizer: str = option(
        "mean",
        "What the scores of a group of layers are divided by, so that groups compare.",
        choices=("mean", "max", "none"),
    )
    scope: str = option(
        "global",
        "Where filters are removed: global ranks all filters together, local takes the same share of every layer, "
        "sensitivity measures what each layer does to the outputs (minutes) and takes first what hurts least for what "
        "it saves, latency does so for each millisecond, by layer times measured here or by --latency_table.",
        choices=("global", "local", "sensitivity", "latency"),
    )
    remove_layers: bool = option(
        False,
        "Also remove whole layers (dense layers, branches of residual blocks), those whose absence the outputs show "
        "least: a thin layer saves hardly any time. Measures each first, about a second a layer and 64 images.",
    )
    sensitivity_images: int = option(
        64, "Training images on which --scope=sensitivity, --scope=latency and --remove_layers measure.", at_least=2
    )
    round_to: int = option(8, "Layers that lose filters keep a multiple of this many.", at_least=1)
    min_channels: int = option(1, "Fewest filters that any layer keeps.", at_least=1)
    max_removed_fraction: float = option(
        0.75, "Largest share of its filters that any layer loses.", at_least=0, at_most=1
    )
    overrides: Mapping[str, float] = option(
        dict,
        "Another --max_removed_fraction for some layers, as REGEX=FRACTION, for example stem.*=0.2,head/.*=0.0; the "
        "last match counts. An entry with a comma of its own goes in double quotes.",
        at_least=0,
        at_most=1,
    )
    exclude: tuple[str, ...] = option((), "Regular expressions of layers that keep all their filters.")
    allow_inexact: bool = option(
        False,
        "Also remove channels that a LayerNormalization takes statistics over; fine-tuning must make up for it.",
    )
    steps: int = option(
        1,
        "Number of steps in which filters are removed; after each, batch norms are re-estimated, filters scored anew.",
        flag="removal_steps",
        at_least=1,
    )

    def check(self) -> None:
        """Refuse patterns that are no regular expressions."""
        for pattern in (*self.overrides, *self.exclude):
            key = "overrides" if pattern in self.overrides else "exclude"
            self.require(_compiles(pattern), key, f"regular expressions, which {pattern!r} is not")

    @property
    def removes_filters(self) -> bool:
        """Whether a budget asks for a pruned model."""
        return bool(self.budget.bounds)

    @property
    def measures_groups(self) -> bool:
        """Whether it is measured what removing channels of each group does to the outputs."""
        return self.scope in ("sensitivity", "latency")

    @property
    def measures(self) -> bool:
        """Whether that is measured of anything, groups or whole layers."""
        return self.measures_groups or self.remove_layers


@dataclass(frozen=True)
class RecoverySection(Section):
    """Repair of the pruned model without labels, and its fine-tuning."""

    reconstruct: bool = option(
        True,
        "Refit the layers that lost inputs by least squares, so that they give what they gave before; otherwise batch "
        "norms are re-estimated, which recovers less.",
    )
    reconstruction_images: int = option(512, "Training images for --reconstruct.", at_least=1)
    vary_images: bool = option(
        True,
        "Give --reconstruct varied copies of its images too (mixtures, other contrast, parts covered): few images, or "
        "images of healthy people alone, do not show what the model knows otherwise.",
    )
    recalibration_images: int = option(
        512,
        "Training images that re-estimate batch norms: between removal steps, and with --noreconstruct.",
        at_least=1,
    )
    from_scratch: bool = option(
        False,
        "Draw the weights of the pruned model anew instead of keeping them: the baseline that says what the kept "
        "weights are worth (Liu et al. 2019).",
    )
    epochs: int = option(
        4,
        "Fine-tuning epochs of the pruned model; with --dataset=images 0 is the fast way, without any training.",
        flag="recovery_epochs",
        at_least=0,
        common=True,
    )
    learning_rate: float = option(
        1e-3,
        "Highest learning rate in fine-tuning the pruned model; without labels 3e-5 unless given.",
        flag="recovery_learning_rate",
        above=0,
    )
    schedule_epochs: int = option(
        0,
        "Learning-rate rewinding: fine-tuning follows the last epochs of a schedule of this many; 0 for a schedule of "
        "its own, with warm-up.",
        at_least=0,
    )
    distill_weight: float = option(
        0.5,
        "Share of every fine-tuning loss that follows the original model instead of the labels.",
        at_least=0,
        at_most=1,
    )
    distill_loss: str = option(
        "probabilities",
        "What fine-tuning follows of the original model: probabilities, by cross-entropy, which hardly asks for more "
        "where it is sure, or logits, by squared distance; without labels logits unless given.",
        choices=("probabilities", "logits"),
    )
    feature_weight: float = option(
        0.0,
        "Weight in the fine-tuning loss of the distance to the original model's last feature maps; 0 for none.",
        at_least=0,
    )
    batch_norm: str = option(
        "train",
        "Batch norms in fine-tuning: train takes the statistics of each batch, hold keeps those of the repaired model, "
        "so that the network that is trained is the one that is scored; without labels hold unless given, with "
        "--from_scratch always train.",
        flag="recovery_batch_norm",
        choices=("train", "hold"),
    )
    ema_decay: float = option(
        0.0,
        "Decay of a running average of the weights in fine-tuning, for example 0.99; 0 keeps the weights themselves.",
        at_least=0,
        below=1,
    )

    def check(self) -> None:
        """Refuse schedules shorter than the training, and random weights without training."""
        expected = f"0, or at least the {self.epochs} epochs of recovery, whose end they are"
        self.require(not self.schedule_epochs or self.schedule_epochs >= self.epochs, "schedule_epochs", expected)
        expected = "1 or more with from_scratch, which starts from random weights"
        self.require(not self.from_scratch or self.epochs >= 1, "epochs", expected)


@dataclass(frozen=True)
class SparsitySection(Section):
    """Zeroing of single weights (TF-MOT), and the fine-tuning after it."""

    fraction: float = option(
        0.5,
        "Share of the remaining weights to set to zero, from 0 up to but not 1.",
        flag="weight_sparsity",
        at_least=0,
        below=1,
        common=True,
    )
    threshold: float | None = option(
        None,
        "Zero every weight of smaller magnitude than this, instead of a share; see --threshold_unit.",
        flag="weight_threshold",
        above=0,
    )
    threshold_unit: str = option(
        "absolute",
        "Unit of --weight_threshold; std is standard deviations of the weight's layer.",
        choices=("absolute", "std"),
    )
    allocation: str = option(
        "layer",
        "How --weight_sparsity spreads: layer is the same everywhere, global zeroes the smallest weights of the "
        "network, erk more where layers are large (Evci et al. 2020).",
        flag="sparsity_allocation",
        choices=("layer", "global", "erk"),
    )
    schedule: str = option(
        "cubic",
        "How the share of zeroed weights grows: constant (at once), polynomial or cubic (fast at first).",
        flag="sparsity_schedule",
        choices=("constant", "polynomial", "cubic"),
    )
    power: float = option(3.0, "Exponent of --sparsity_schedule=polynomial.", flag="sparsity_power", above=0)
    initial_sparsity: float = option(
        0.0, "Share of zeroed weights at which polynomial and cubic schedules start.", at_least=0, below=1
    )
    pattern: str = option(
        "unstructured",
        "Which weights are zeroed together; 2:4 zeroes half of all weights at once.",
        flag="sparsity_pattern",
        choices=("unstructured", "2:4", "block"),
    )
    block: tuple[int, int] = option(
        (1, 4), "ROWS,COLUMNS of a block of --sparsity_pattern=block, inputs by outputs.", flag="sparsity_block"
    )
    epochs: int = option(
        4,
        "Epochs in which weights are zeroed and the others make up for it.",
        flag="sparsity_epochs",
        at_least=0,
    )
    learning_rate: float = option(
        5e-4,
        "Highest learning rate while weights are zeroed; without labels 1e-4 unless given.",
        flag="sparsity_learning_rate",
        above=0,
    )
    finetune_epochs: int = option(0, "Fine-tuning epochs after weights were zeroed; zeros are held.", at_least=0)
    finetune_learning_rate: float = option(
        2e-4, "Highest learning rate in fine-tuning after weights were zeroed.", above=0
    )

    def check(self) -> None:
        """Refuse a share beside a threshold, blocks of one weight, and zeroing without training."""
        if self.threshold is not None:
            expected = "0 beside weight_threshold: give a share or a threshold, not both"
            self.require(not self.fraction, "fraction", expected)
        self.require(
            min(self.block) >= 1 and max(self.block) > 1, "block", "a block of more than one weight, as (1, 4)"
        )
        if self.pattern == "2:4":
            self.require(math.isclose(self.fraction, _TWO_OF_FOUR), "fraction", "0.5 with 2:4")
        if self.zeroes_weights:
            self.require(self.epochs >= 1, "epochs", "1 or more to zero weights")

    @property
    def zeroes_weights(self) -> bool:
        """Whether weights are set to zero."""
        return bool(self.fraction) or self.threshold is not None


@dataclass(frozen=True)
class QatSection(Section):
    """Quantization-aware training: the rounding of int8 in the loop."""

    when: str = option(
        "auto",
        "When to train with the rounding of int8 in the loop; auto is where int8 loses more on dev than "
        "--max_auroc_drop.",
        flag="qat",
        choices=("auto", "never", "always"),
    )
    epochs: int = option(1, "Epochs of quantization-aware training.", flag="qat_epochs", at_least=1)
    learning_rate: float = option(
        5e-5, "Highest learning rate in quantization-aware training.", flag="qat_learning_rate", above=0
    )


@dataclass(frozen=True)
class ExportSection(Section):
    """The compressed .tflite file, and how its integers are chosen."""

    quant_type: str = option(
        "int8",
        "Number type of the compressed file; int16x8 is nearly as exact as float and takes about 30 times as long.",
        choices=QUANT_TYPES,
        common=True,
    )
    calibration_images: int = option(128, "Training images that fix the value ranges of an int8 file.", at_least=1)
    calibration_method: str = option(
        "mse", "How calibration images fix the value ranges of an int8 file.", choices=("minmax", "percentile", "mse")
    )
    percentile: float = option(
        99.999,
        "Percentage of the values that stay inside a range at either end, for --calibration_method=percentile.",
        above=50,
        at_most=100,
    )
    auto_fallback: int = option(
        0, "Number of layers left in float, those that int8 hurts most; int8_float_io only.", at_least=0
    )
    qat: QatSection = field(default_factory=QatSection)

    def check(self) -> None:
        """Refuse what the quant type cannot do."""
        expected = "int8_float_io with auto_fallback, which leaves layers in float"
        self.require(not self.auto_fallback or TYPES[self.quant_type].mixes_float, "quant_type", expected)
        expected = "int8 or int8_float_io with qat=always"
        self.require(self.qat.when != "always" or self.quantizes, "quant_type", expected)

    @property
    def quantizes(self) -> bool:
        """Whether the compressed file computes in int8."""
        return TYPES[self.quant_type].activations == "int8"

    @property
    def calibrates(self) -> bool:
        """Whether calibration images shape the compressed file."""
        return TYPES[self.quant_type].calibrated


@dataclass(frozen=True)
class GateSection(Section):
    """What the compressed file may lose, and how sure that must be."""

    max_auroc_drop: float = option(
        0.005,
        "AUROC that the compressed file may lose; given on the command line, a file that loses more, or may be worse "
        "by --margin, ends the command with code 3.",
        at_least=0,
        common=True,
    )
    margin: float = option(
        0.01, "Margin of non-inferiority: the upper bound of the AUROC loss must lie below it.", at_least=0
    )
    max_flips: float = option(
        # 73 patients held out, not one decision changed, can show 0.05; 0.02 would take 189.
        0.05,
        "Without labels: share of the decisions that may differ from the original's; a file that is beyond it for sure "
        "ends the command with code 3.",
        at_least=0,
        below=1,
    )
    max_logit_distance: float = option(
        0.5,
        "Without labels: how far logits may lie from the original's, root mean square in standard deviations of the "
        "latter; a file that is beyond it for sure ends the command with code 3.",
        above=0,
    )
    bootstrap_samples: int = option(1000, "Resamples of patients behind each confidence interval.", at_least=1)


@dataclass(frozen=True)
class RunSection(Section):
    """What the whole run shares."""

    seed: int = option(0, "Seed of everything that is drawn at random.", at_least=0)
    num_threads: int = option(
        DEFAULT_THREADS,
        "Threads that TensorFlow computes with: part of the recipe, because another number gives other bytes, on a "
        "machine of however many cores.",
        at_least=1,
    )
    force: bool = option(
        False, "Go on where a check says that the result would be worthless; what it said stays in the results."
    )


BUILT_IN: dict[str, type[Section]] = {
    "model": ModelSection,
    "data": DataSection,
    "training": TrainingSection,
    "removal": RemovalSection,
    "recovery": RecoverySection,
    "sparsity": SparsitySection,
    "export": ExportSection,
    "gate": GateSection,
    "run": RunSection,
}
for _name, _section in BUILT_IN.items():
    register_section(_name, _section)


def _compiles(pattern: str) -> bool:
    try:
        re.compile(pattern)
    except re.error:
        return False
    return True
