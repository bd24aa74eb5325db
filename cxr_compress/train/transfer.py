"""The same network at another image size, with another head or in another precision; its weights come along."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from cxr_compress.errors import CompressionError, UnsupportedLayerError
from cxr_compress.keras2 import keras
from cxr_compress.recipe import AugmentRanges
from cxr_compress.train.augment import DEFAULT_RANGES
from cxr_compress.train.config import ACTIVATIONS, FitConfig

PRECISIONS = ("auto", "float32", "mixed_bfloat16", "mixed_float16")
_BFLOAT16_CAPABILITY = (8, 0)  # NVIDIA Ampere, the first whose tensor cores compute in bfloat16

Edit = Callable[[dict[str, Any]], None]


def at_size(model: Any, size: int) -> Any:
    """A copy of a model for square images of another size, with the same weights.

    Args:
        model: Functional or Sequential, fully convolutional before a global pooling.
        size: Height and width, pixels.

    Raises:
        UnsupportedLayerError: The network's weights depend on the image size (a Flatten before a Dense layer).
    """
    if tuple(model.input_shape[1:3]) == (size, size):
        return model
    channels = model.input_shape[3]

    def resize(layer: dict[str, Any]) -> None:
        if layer["class_name"] == "InputLayer":
            layer["config"]["batch_input_shape"] = (None, size, size, channels)

    try:
        copy = _edited(model, resize)
        copy.set_weights(model.get_weights())
    except ValueError as error:
        raise UnsupportedLayerError(
            f"expected a network that takes images of any size, but {model.name} cannot be rebuilt for {size}x{size}: "
            f"train it at its own size, {model.input_shape[1]}x{model.input_shape[2]}"
        ) from error
    return copy


def with_head(model: Any, columns: Sequence[int | None]) -> Any:
    """A copy of a model whose last Dense layer has other outputs; all other weights come along.

    Args:
        model: Functional or Sequential, ending in a Dense layer of logits.
        columns: For each output wanted, the old output that it is, or None for a new one with random weights. A model
            whose outputs stay as they are is returned as it is.

    Raises:
        UnsupportedLayerError: The model does not end in a Dense layer without activation.
    """
    if list(columns) == list(range(model.output_shape[-1])):
        return model
    num_classes = len(columns)
    head = model.layers[-1]
    if not isinstance(head, keras.layers.Dense) or head.activation is not keras.activations.linear:
        raise UnsupportedLayerError(
            f"expected a model that ends in a Dense layer of logits, got {type(head).__name__} {head.name!r}: a head "
            f"for {num_classes} findings cannot be put in its place"
        )

    def widen(layer: dict[str, Any]) -> None:
        if layer["config"]["name"] == head.name:
            layer["config"]["units"] = num_classes

    copy = _edited(model, widen)
    for theirs, ours in zip(copy.layers, model.layers, strict=True):
        weights = ours.get_weights()
        if ours is head:
            made = theirs.get_weights()
            for place, column in enumerate(columns):
                if column is not None:
                    for new, old in zip(made, weights, strict=True):
                        new[..., place] = old[..., column]
            weights = made
        theirs.set_weights(weights)
    return copy


def in_precision(model: Any, precision: str) -> Any:
    """A copy of a model that computes in another precision; its weights stay float32, its logits float32.

    Args:
        model: Functional or Sequential.
        precision: "float32", "mixed_bfloat16", "mixed_float16", or "auto": float32 on processors and on GPUs without
            fast 16-bit arithmetic, else bfloat16 where the GPU has it and float16 where not.

    Raises:
        CompressionError: Another word.
    """
    if precision not in PRECISIONS:
        raise CompressionError(f"expected a precision of {', '.join(PRECISIONS)}; got {precision!r}")
    policy = _policy_of_device() if precision == "auto" else precision
    if {layer.dtype_policy.name for layer in model.layers} in ({"float32"}, {policy}) and policy == "float32":
        return model
    last = model.layers[-1].name

    def compute_in(layer: dict[str, Any]) -> None:
        name = "float32" if layer["config"]["name"] == last or layer["class_name"] == "InputLayer" else policy
        layer["config"]["dtype"] = name if name == "float32" else _policy_config(name)

    copy = _edited(model, compute_in)
    copy.set_weights(model.get_weights())
    return copy


def _edited(model: Any, edit: Edit) -> Any:
    config = model.get_config()
    for layer in config["layers"]:
        edit(layer)
    if "build_input_shape" in config:  # of a Sequential model: its first layer decides
        config.pop("build_input_shape")
    return type(model).from_config(config)


def _policy_config(name: str) -> dict[str, Any]:
    return {"class_name": "Policy", "config": {"name": name}}


def _policy_of_device() -> str:
    import tensorflow as tf

    devices = tf.config.list_physical_devices("GPU")
    if not devices:
        return "float32"
    capability = tf.config.experimental.get_device_details(devices[0]).get("compute_capability", (0, 0))
    if capability >= _BFLOAT16_CAPABILITY:
        return "mixed_bfloat16"
    return "mixed_float16" if capability >= (7, 0) else "float32"


POS_WEIGHTS = ("balanced", "sqrt", "none")
AUTO = "auto"


@dataclass(frozen=True)
class TrainingPlan:
    """The choices of a base training, which may start at small images and grow.

    A network that is convolutional before its pooling takes images of any size, and a step at 64 px costs an eighth of
    one at 224 px: most of what there is to learn is learnt small. Each size is a training of its own, with its own
    warm-up and its rate falling to 0, that starts from the best weights of the size before.

    Attributes:
        model: Network of ``models.MODELS`` to build, or the name to give the one that comes from a file.
        dataset: As ``data.load_dataset`` knows it.
        sizes: Height and width of the images, pixels, one per stage.
        epochs: Per stage.
        batch_sizes: Images per step and stage, over all workers.
        learning_rates: At the end of the warm-up, per stage.
        preset: How pixels become the input, one of ``device.spec.PRESETS``; "" for what the model to start from says,
            or imagenet_torch for a network that is built.
        color: "gray", or "rgb" for skin; "" for what the model to start from says, or gray.
        labels: Names of the outputs of the model to start from, where its file does not say them.
        positive: Of two classes that exclude one another the finding, by its label or its index.
        match: "name", or "position": outputs of the model to start from and of the teacher stand in the order of the
            set's findings.
        dev_fraction: Share of the training patients set aside to choose the best epoch.
        allow_missing: As ``data.load_dataset``.
        options: Of the reader of the set.
        pos_weight: Weight of positives in the loss: "balanced" (negatives per positive, at most 50), its root "sqrt",
            which disturbs probabilities less, or "none"; of classes that exclude one another, the weight of each.
        loss: As in ``FitConfig``, with all that follow.
        focal_gamma: Exponent of the focal loss.
        label_smoothing: Share by which labels move towards 0.5.
        mixup: Of the blending of images.
        weight_decay: Decoupled decay.
        warmup_fraction: Share of the steps of a stage.
        ema_decay: Of the running average of the weights.
        patience: Epochs without a better one on dev that end a stage.
        augment: Change each image a little.
        ranges: How far.
        precision: As ``transfer.in_precision``.
        distill_weight: Share of the loss that follows a teacher.
        seed: Of everything that draws.
        activation: As in ``FitConfig``, or "auto": "softmax" where the set's labels are classes that exclude one
            another, or the model to start from gives such classes, else "sigmoid".
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
            CompressionError: A value is out of range, or a list is not as long as ``sizes``.
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
        for name, choices in (("pos_weight", POS_WEIGHTS), ("precision", PRECISIONS), ("activation", activations)):
            if getattr(self, name) not in choices:
                raise CompressionError(f"{name} must be one of {', '.join(choices)}, got {getattr(self, name)!r}")
        for stage in range(len(self.sizes)):
            self.config(stage, ACTIVATIONS[0] if self.activation == AUTO else self.activation)

    def config(self, stage: int, activation: str = ACTIVATIONS[0]) -> FitConfig:
        """The training of one stage; ``activation`` is what became of the plan's."""
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
