"""What decides a training, one run of `fit` or several at growing sizes, and what a run gives: plain frozen data."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from cxr_compress.errors import CompressionError
from cxr_compress.models.variants import PRECISIONS
from cxr_compress.recipe import AugmentRanges
from cxr_compress.train.batches import DEFAULT_RANGES

_POS_WEIGHTS = ("balanced", "sqrt", "none")
AUTO = "auto"
_LOSSES = ("bce", "focal")
ACTIVATIONS = ("sigmoid", "softmax")
_DISTILL_LOSSES = ("probabilities", "logits")
_BATCH_NORMS = ("train", "hold")
_YOUNGER: dict[str, Any] = {
    "feature_weight": 0.0,
    "schedule_epochs": 0,
    "activation": "sigmoid",
    "distill_loss": "probabilities",
    "batch_norm": "train",
}


@dataclass(frozen=True)
class FitConfig:
    """The choices of one training run; together with images, model and seed they fix its result.

    Attributes:
        epochs: passes over the training images.
        batch_size: images per step.
        learning_rate: Adam's rate at the end of the warm-up; from there it falls to 0 along a half cosine.
        warmup_fraction: share of all steps in which the rate climbs from 0; 0 starts at the full rate.
        weight_decay: decoupled (AdamW) decay per step, times the rate; batch-norm parameters and biases are spared.
        augment: change each image a little, within `ranges`.
        ranges: how far.
        loss: "bce", weighted binary cross-entropy, or "focal", which also plays down the images that are easy.
        focal_gamma: exponent of the focal loss; 0 makes it the cross-entropy.
        label_smoothing: share by which labels move towards 0.5, or towards equal shares of exclusive classes; helps
            where labels were mined from reports.
        mixup: parameter of the Beta distribution of the shares in which images and labels are blended; 0: not at all.
            It makes a network less sure of what sets one hospital's images apart, and probabilities need calibration.
        ema_decay: of a running average of all weights, which then is what is scored and kept; 0 keeps the weights
            themselves. The average follows faster in the first steps.
        patience: stop after this many epochs without a better one (see `FitResult`); 0 never stops early.
        seed: of image order, of the changes to the images and of what is random inside the model.
        distill_weight: share of the loss that pulls towards the teacher's probabilities instead of the labels; needs a
            teacher when above 0.
        feature_weight: of the term that pulls a map of the student towards the teacher's, added to the rest of the
            loss; needs a teacher and a `FeatureMatch` when above 0. A teacher costs one pass, for both terms.
        schedule_epochs: plan the half cosine for this many epochs and follow only the last `epochs` of it, without a
            warm-up (`warmup_fraction` then does not count); 0 plans it for the run itself. With the rate and the
            epochs of the base training, the rate is rewound to where so many epochs were left.
        activation: "sigmoid": each finding by itself; "softmax": the columns are classes that exclude one another, and
            the loss is their categorical cross-entropy, which has no focal form here.
        distill_loss: what of the teacher is followed, "probabilities" or "logits", as in `losses.distillation_loss`.
        batch_norm: "train": batch normalizations take the statistics of each batch and keep a running mean of them;
            "hold": they use the statistics that the model came with and leave them as they are, so that the network
            that is trained is the one that is scored. Their scale and offset are trained either way.
    """

    epochs: int
    batch_size: int = 64
    learning_rate: float = 1e-3
    warmup_fraction: float = 0.05
    weight_decay: float = 0.0
    augment: bool = True
    ranges: AugmentRanges = DEFAULT_RANGES
    loss: str = "bce"
    focal_gamma: float = 2.0
    label_smoothing: float = 0.0
    mixup: float = 0.0
    ema_decay: float = 0.0
    patience: int = 0
    seed: int = 0
    distill_weight: float = 0.0
    feature_weight: float = 0.0
    schedule_epochs: int = 0
    activation: str = "sigmoid"
    distill_loss: str = "probabilities"
    batch_norm: str = "train"

    def __post_init__(self) -> None:
        """Refuse what cannot be trained with.

        Raises:
            CompressionError: a value is out of its range.
        """
        self._require(self.epochs >= 1, "epochs", "at least 1")
        self._require(self.batch_size >= 1, "batch_size", "at least 1")
        self._require(0 < self.learning_rate < math.inf, "learning_rate", "a positive number")
        self._require(0 <= self.warmup_fraction < 1, "warmup_fraction", "in [0, 1)")
        self._require(0 <= self.weight_decay < math.inf, "weight_decay", "0 or a positive number")
        self._require(0 <= self.distill_weight <= 1, "distill_weight", "in [0, 1]")
        self._require(self.loss in _LOSSES, "loss", f"one of {', '.join(_LOSSES)}")
        self._require(self.activation in ACTIVATIONS, "activation", f"one of {', '.join(ACTIVATIONS)}")
        self._require(self.distill_loss in _DISTILL_LOSSES, "distill_loss", f"one of {', '.join(_DISTILL_LOSSES)}")
        self._require(self.batch_norm in _BATCH_NORMS, "batch_norm", f"one of {', '.join(_BATCH_NORMS)}")
        rule = "bce for classes that exclude one another (activation softmax): the focal loss is for single findings"
        self._require(self.activation == "sigmoid" or self.loss == "bce", "loss", rule)
        self._require(0 <= self.focal_gamma < math.inf, "focal_gamma", "0 or a positive number")
        self._require(0 <= self.label_smoothing < 1, "label_smoothing", "in [0, 1)")
        self._require(0 <= self.mixup < math.inf, "mixup", "0 or a positive number")
        self._require(0 <= self.ema_decay < 1, "ema_decay", "in [0, 1)")
        self._require(self.patience >= 0, "patience", "0 or more")
        self._require(0 <= self.feature_weight < math.inf, "feature_weight", "0 or a positive number")
        planned = self.schedule_epochs == 0 or self.schedule_epochs >= self.epochs
        self._require(planned, "schedule_epochs", f"0, or at least epochs ({self.epochs})")

    def steps_per_epoch(self, images: int) -> int:
        """Full batches in an epoch; a set smaller than a batch is one smaller batch."""
        return images // min(self.batch_size, images)

    def _require(self, holds: bool, name: str, rule: str) -> None:
        if not holds:
            raise CompressionError(f"{name} must be {rule}, got {getattr(self, name)}")

    def to_dict(self) -> dict[str, Any]:
        """Return the fields, JSON-ready."""
        return dataclasses.asdict(self)

    def deciding(self) -> dict[str, Any]:
        """Return the fields that decide a run; younger ones that are not used are left out.

        A run folder begun before such a field existed was begun with what its default says, and goes on.
        """
        unused = {name for name, default in _YOUNGER.items() if getattr(self, name) == default}
        return {name: value for name, value in self.to_dict().items() if name not in unused}


@dataclass(frozen=True)
class TrainingPlan:
    """The choices of a base training, which may start at small images and grow.

    A network that is convolutional before its pooling takes images of any size, and a step at 64 px costs an eighth of
    one at 224 px: most of what there is to learn is learnt small. Each size is a training of its own, with its own
    warm-up and its rate falling to 0, that starts from the best weights of the size before.

    Attributes:
        model: network of `models.MODELS` to build, or the name to give the one that comes from a file.
        dataset: as `data.load_dataset` knows it.
        sizes: height and width of the images, pixels, one per stage.
        epochs: per stage.
        batch_sizes: images per step and stage, over all workers.
        learning_rates: at the end of the warm-up, per stage.
        preset: how pixels become the input, one of `device.spec.PRESETS`; "" for what the model to start from says,
            or imagenet_torch for a network that is built.
        color: "gray", or "rgb" for skin; "" for what the model to start from says, or gray.
        labels: names of the outputs of the model to start from, where its file does not say them.
        positive: of two classes that exclude one another the finding, by its label or its index.
        match: "name", or "position": outputs of the model to start from and of the teacher stand in the order of the
            set's findings.
        dev_fraction: share of the training patients set aside to choose the best epoch.
        allow_missing: as `data.load_dataset`.
        options: of the reader of the set.
        pos_weight: weight of positives in the loss: "balanced" (negatives per positive, at most 50), its root "sqrt",
            which disturbs probabilities less, or "none"; of classes that exclude one another, the weight of each.
        precision: as `models.variants.in_precision`.
        activation: as in `FitConfig`, or "auto": "softmax" where the set's labels are classes that exclude one another,
            or the model to start from gives such classes, else "sigmoid".

    The other fields are those of `FitConfig`, for every stage.
    """

    model: str
    dataset: str
    sizes: tuple[int, ...] = (224,)
    epochs: tuple[int, ...] = (10,)
    batch_sizes: tuple[int, ...] = (32,)
    learning_rates: tuple[float, ...] = (1e-3,)
    preset: str = ""
    color: str = ""
    labels: tuple[str, ...] = ()
    positive: str = ""
    match: str = "name"
    dev_fraction: float = 0.1
    allow_missing: bool = False
    options: Mapping[str, str] = field(default_factory=dict)
    pos_weight: str = "balanced"
    loss: str = "bce"
    focal_gamma: float = 2.0
    label_smoothing: float = 0.0
    mixup: float = 0.0
    weight_decay: float = 0.0
    warmup_fraction: float = 0.05
    ema_decay: float = 0.0
    patience: int = 0
    augment: bool = True
    ranges: AugmentRanges = DEFAULT_RANGES
    precision: str = "auto"
    distill_weight: float = 0.0
    seed: int = 0
    activation: str = AUTO

    def __post_init__(self) -> None:
        """Stretch what was given once to all stages, and refuse what cannot be trained.

        Raises:
            CompressionError: a value is out of range, or a list is not as long as `sizes`.
        """
        if not self.sizes or min(self.sizes) < 1:
            raise CompressionError(f"sizes must be one or more image sizes in pixels, got {list(self.sizes)}")
        for name in ("epochs", "batch_sizes", "learning_rates"):
            values = tuple(getattr(self, name))
            if len(values) not in (1, len(self.sizes)):
                raise CompressionError(
                    f"{name} must hold one value, or one per size ({len(self.sizes)}), got {len(values)}"
                )
            object.__setattr__(self, name, values * len(self.sizes) if len(values) == 1 else values)
        activations = (AUTO, *ACTIVATIONS)
        for name, choices in (("pos_weight", _POS_WEIGHTS), ("precision", PRECISIONS), ("activation", activations)):
            if getattr(self, name) not in choices:
                raise CompressionError(f"{name} must be one of {', '.join(choices)}, got {getattr(self, name)!r}")
        for stage in range(len(self.sizes)):
            self.config(stage, ACTIVATIONS[0] if self.activation == AUTO else self.activation)

    def config(self, stage: int, activation: str = ACTIVATIONS[0]) -> FitConfig:
        """The training of one stage; `activation` is what became of the plan's."""
        shared = {name: getattr(self, name) for name in _SHARED}
        return FitConfig(
            epochs=self.epochs[stage],
            batch_size=self.batch_sizes[stage],
            learning_rate=self.learning_rates[stage],
            activation=activation,
            **shared,
        )

    def to_dict(self) -> dict[str, Any]:
        """Return the fields, JSON-ready; "auto", which folders begun before there was a choice meant, is left out."""
        fields = dataclasses.asdict(self)
        if self.activation == AUTO:
            del fields["activation"]
        return {name: list(value) if isinstance(value, tuple) else value for name, value in fields.items()}


_SHARED = tuple(
    sorted(
        {field.name for field in dataclasses.fields(TrainingPlan)}
        & {field.name for field in dataclasses.fields(FitConfig)} - {"epochs", "activation"}
    )
)


@dataclass(frozen=True)
class FitResult:
    """What a training run reached; the model that was trained holds the weights of `best_epoch`.

    Attributes:
        best_epoch: 1 for the first one, 0 for the start; chosen by the dev AUROC, then by the dev loss, or by the dev
            objective where there is one.
        best_dev_auroc: mean over the findings; nan where no finding of the dev set has both classes.
        history: per epoch `epoch`, `loss`, `dev_loss`, `dev_auroc` (None where undefined), `auroc` per
            finding, `dev_objective` where a teacher's probabilities were followed, `dev_accuracy` of classes that
            exclude one another, `learning_rate`, `images_per_second` and `seconds`; where the start counts, first an
            entry of epoch 0 with the figures of the dev set alone.
        seconds: spent in epochs, those before a resume included.
        pos_weight: float32 (findings,), the weights in the loss; a probability is `sigmoid(z - log(pos_weight))`,
            or that softmax.
    """

    best_epoch: int
    best_dev_auroc: float
    history: tuple[dict[str, Any], ...]
    seconds: float
    pos_weight: np.ndarray
