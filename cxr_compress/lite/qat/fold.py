"""Rewrite a model without batch norms, exactly: into the layer in front where there is one, else into an own layer.

TF-MOT takes a batch norm only behind a convolution; 62 of the 121 in DenseNet121 follow a concatenation or a pool.

- A batch norm that alone reads a convolution, depthwise convolution, separable convolution or dense layer without
  activation is multiplied into its kernel and bias. Frozen statistics on purpose: what is trained then is the very
  int8 kernel that the device will run. TF-MOT's own pattern trains with the statistics of each batch but exports the
  moving ones, so that the two differ, and small batches make the rounding of the kernel jump about.
- A Rescaling becomes such a 1x1 DepthwiseConv2D too, one that is not trained.
- Every other batch norm (behind a concatenation, pool, sum, activation or input) becomes a 1x1 DepthwiseConv2D with
  bias: one int8 operator with a scale per channel, a ReLU behind it included, where MUL and ADD share one scale among
  all channels and round twice.

The price of frozen statistics: nothing rescales what training does to a kernel any more, so that a learning rate of a
tenth or less of that of the float training is in place.

Source: Jacob et al., "Quantization and Training of Neural Networks for Efficient Integer-Arithmetic-Only Inference"
(arXiv 1712.05877), section 3.2, for folding in training.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from cxr_compress.errors import UnsupportedLayerError
from cxr_compress.keras2 import keras
from cxr_compress.models.keras_graph import require_graph, traits_of, unroll
from cxr_compress.models.layer_traits import LAYERS

layers = keras.layers

_SUPPORTED = (layers.Conv2D, layers.DepthwiseConv2D, layers.Dense, layers.SeparableConv2D)
# The kernel of each layer that has one: what quantization, batch norms and masks act on.
KERNELS: dict[type, str] = {kind: LAYERS[kind.__name__].kernel for kind in _SUPPORTED}
# What becomes part of the operator in front of it, where nothing else reads that operator's result.
_RECTIFIERS = ("relu", "relu6")
_RELU6 = 6.0
_PAIR = 2
_IMAGE_RANK = 4
_SHOWN = 5


@dataclass(frozen=True)
class Step:
    """One call of one layer.

    Attributes:
        name: the layer's path: nested models put their names and "/" in front.
        layer: the layer that is called.
        inputs: the steps whose results it reads, in the order of its arguments.
    """

    name: str
    layer: Any
    inputs: tuple[int, ...]


@dataclass(frozen=True)
class Steps:
    """A model of one input and one output as calls, each after those it reads; `output` is the last one's number."""

    calls: tuple[Step, ...]
    output: int

    def readers(self) -> list[list[int]]:
        """For every step, the steps that read it, once for each time they do."""
        found: list[list[int]] = [[] for _ in self.calls]
        for number, step in enumerate(self.calls):
            for source in step.inputs:
                found[source].append(number)
        return found


def read_steps(model: Any) -> Steps:
    """Read the wiring of a model, nested models opened up; the model is not modified.

    A layer without weights that is called twice becomes two steps with names of their own. Layers that augment images
    in training are left out.

    Raises:
        UnsupportedLayerError: no functional or Sequential model of one input and one output, or a layer that
            quantization-aware training cannot take; it names each, its type and what to do.
    """
    require_graph(model)
    if len(model.inputs) != 1 or len(model.outputs) != 1:
        raise UnsupportedLayerError(
            f"expected one input and one output, got {len(model.inputs)} and {len(model.outputs)}: build a model of "
            "the part that takes the image and gives the logits"
        )
    start = model.inputs[0]._keras_history.layer
    calls, unrolled = [Step(start.name, start, ())], unroll(model)
    made_by = {unrolled.source: 0}  # number of a tensor -> number of the step
    for call in unrolled.calls:
        inputs = tuple(made_by[tensor] for tensor in call.reads)
        step = len(calls)
        if traits_of(call.layer).kind == "augmentation":
            # It changes images in training alone: in an int8 file, and so in training for one, it is not there.
            (step,) = inputs
        else:
            calls.append(Step(call.path, call.layer, inputs))
        made_by.update(dict.fromkeys(call.makes, step))
    _refuse(calls)
    return Steps(tuple(_with_own_names(calls)), made_by[unrolled.results[0]])


def is_rectifier(layer: Any) -> bool:
    """Whether a layer is a ReLU or ReLU6 and nothing else."""
    return type(layer) is layers.ReLU or (type(layer) is layers.Activation and _name_of(layer) in _RECTIFIERS)


def passes_on(layer: Any) -> bool:
    """Whether a layer's result has the scale of what it reads."""
    return traits_of(layer).keeps_scale or (type(layer) is layers.Activation and _name_of(layer) == "linear")


def is_linear(layer: Any) -> bool:
    """Whether a layer with a kernel applies no activation of its own."""
    return _name_of(layer) == "linear"


def _with_own_names(calls: Sequence[Step]) -> Iterator[Step]:
    seen: Counter[str] = Counter()
    for step in calls:
        seen[step.name] += 1
        name = step.name if seen[step.name] == 1 else f"{step.name}_call{seen[step.name]}"
        yield Step(name, step.layer, step.inputs)


def _refuse(calls: Sequence[Step]) -> None:
    """Refuse by name what cannot be trained quantized."""
    times = Counter(id(step.layer) for step in calls)
    bad: dict[str, str] = {}
    for step in calls:
        reason = "called more than once" if times[id(step.layer)] > 1 and step.layer.weights else _objection(step)
        if reason:
            bad.setdefault(step.name, f"{step.name} ({type(step.layer).__name__}: {reason})")
    if bad:
        listed = ", ".join(list(bad.values())[:_SHOWN]) + (
            f", and {len(bad) - _SHOWN} more" if len(bad) > _SHOWN else ""
        )
        raise UnsupportedLayerError(
            f"quantization-aware training cannot take {listed}: rebuild the model without, or quantize it after "
            "training (lite.convert)"
        )


def _objection(step: Step) -> str:
    """Why a step cannot be taken; "" if it can."""
    kind = type(step.layer)
    if kind is not layers.InputLayer and step.layer.dtype_policy.name != "float32":
        return f"computes in {step.layer.dtype_policy.name}, not float32"
    if getattr(step.layer, "data_format", None) == "channels_first":
        return "channels come first"
    check = _CHECKS.get(kind)
    if check is None and not passes_on(step.layer) and kind not in (layers.InputLayer, layers.GlobalAveragePooling2D):
        return "no int8 rule for this type"
    return check(step) if check else ""


def _odd_activation(step: Step) -> str:
    name = _name_of(step.layer)
    if name in ("linear", *_RECTIFIERS):
        return ""
    advice = ", where a model has to end in logits" if name in ("sigmoid", "softmax") else ""
    return f"activation {name}, int8 takes ReLU and ReLU6{advice}"


def _odd_rectifier(step: Step) -> str:
    layer = step.layer
    plain = not layer.negative_slope and not layer.threshold and layer.max_value in (None, _RELU6)
    return "" if plain else "neither ReLU nor ReLU6"


def _odd_norm(step: Step) -> str:
    rank = step.layer.input_spec.ndim
    last = list(step.layer.axis) == [rank - 1] and rank in (2, 4)
    return "" if last else "normalizes another axis than the last of an image or vector"


def _odd_scaling(step: Step) -> str:
    rank = len(step.layer.output_shape)
    return "" if rank == _IMAGE_RANK else f"scales a tensor of {rank} axes, int8 takes images here"


def _odd_sum(step: Step) -> str:
    return "" if len(step.inputs) == _PAIR else f"{len(step.inputs)} tensors: add two at a time"


def _name_of(layer: Any) -> str:
    function = layer.activation
    return str(getattr(function, "__name__", type(function).__name__))


_CHECKS: dict[type, Callable[[Step], str]] = {
    **dict.fromkeys((*KERNELS, layers.Activation), _odd_activation),
    layers.ReLU: _odd_rectifier,
    layers.BatchNormalization: _odd_norm,
    layers.Add: _odd_sum,
    layers.Rescaling: _odd_scaling,
}


_FLAT_RANK = 2
_SPATIAL = "depthwise"


@dataclass(frozen=True)
class FoldedModel:
    """A model without batch norms that computes what the original does in inference.

    Attributes:
        model: plain, flat keras.Model; layers keep their paths as names, one with a batch norm within it that of the
            layer, one that was a batch norm that of the batch norm.
        kernels: the layers that hold the kernel of the original layer of the same path.
    """

    model: Any
    kernels: frozenset[str]


def fold_batch_norms(model: Any) -> FoldedModel:
    """Return an equal model without batch norms, for quantized training and export; the argument is left as it is.

    Equal up to float32 rounding. Regularizers and constraints are dropped: they were meant for other weights.

    Args:
        model: functional or Sequential, nested models included (they are opened up), one image in, logits out.

    Raises:
        UnsupportedLayerError: as `graph.read_steps`.
    """
    steps = read_steps(model)
    builder = _Builder(absorbing(steps))
    tensors: list[Any] = []
    for number, step in enumerate(steps.calls):
        tensors.append(builder.call(number, step, [tensors[source] for source in step.inputs]))
    folded = keras.Model(tensors[0], tensors[steps.output], name=model.name)
    for name, weights in builder.weights.items():
        folded.get_layer(name).set_weights(weights)
    return FoldedModel(folded, frozenset(builder.kernels))


def absorbing(steps: Steps) -> dict[int, Step]:
    """Step number -> the batch norm that goes into it: the only reader of a linear layer with a kernel."""
    readers, found = steps.readers(), {}
    for number, step in enumerate(steps.calls):
        if type(step.layer) not in KERNELS or not is_linear(step.layer) or number == steps.output:
            continue
        behind = readers[number]
        if len(behind) == 1 and type(steps.calls[behind[0]].layer) is layers.BatchNormalization:
            found[number] = steps.calls[behind[0]]
    return found


def scale_and_shift(norm: Any) -> tuple[np.ndarray, np.ndarray]:
    """What a batch norm does in inference: x * scale + shift, float64 (channels,) each."""
    mean, variance = norm.moving_mean.numpy().astype(np.float64), norm.moving_variance.numpy().astype(np.float64)
    scale = 1.0 / np.sqrt(variance + norm.epsilon)
    if norm.gamma is not None:
        scale = scale * norm.gamma.numpy()
    shift = -mean * scale
    return scale, shift if norm.beta is None else shift + norm.beta.numpy()


@dataclass
class _Builder:
    """Calls the layers of the folded model one after the other, and notes the weights they get in the end."""

    absorbed: Mapping[int, Step]
    weights: dict[str, list[np.ndarray]] = field(default_factory=dict)
    kernels: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._gone = {id(norm) for norm in self.absorbed.values()}

    def call(self, number: int, step: Step, inputs: list[Any]) -> Any:
        """The tensor that stands for the result of a step."""
        kind = type(step.layer)
        if kind is layers.InputLayer:
            return keras.Input(batch_shape=tuple(step.layer.output.shape), name=step.name)
        if id(step) in self._gone:
            return inputs[0]
        if kind is layers.BatchNormalization:
            return self._affine(step, inputs[0])
        if kind is layers.Rescaling:
            return self._scaled(step, inputs[0])
        if kind in KERNELS:
            return self._with_kernel(step, self.absorbed.get(number), inputs[0])
        copy = kind.from_config({**step.layer.get_config(), "name": step.name})
        return copy(inputs if len(inputs) > 1 or kind is layers.Concatenate else inputs[0])

    def _with_kernel(self, step: Step, norm: Step | None, tensor: Any) -> Any:
        kind, config = type(step.layer), _plain(step.layer.get_config())
        kernel = getattr(step.layer, KERNELS[kind]).numpy().astype(np.float64)
        bias = step.layer.bias.numpy() if step.layer.use_bias else None
        if norm is not None:
            scale, shift = scale_and_shift(norm.layer)
            bias = shift if bias is None else bias * scale + shift
            # A depthwise kernel has (channel, multiplier) as its last axes.
            kernel = kernel * (scale.reshape(kernel.shape[-2:]) if kind is layers.DepthwiseConv2D else scale)
        if kind is layers.SeparableConv2D:
            tensor = self._spatial_half(step, tensor)
            kind, config = layers.Conv2D, _pointwise(config)
        config |= {"name": step.name, "use_bias": bias is not None}
        self.kernels.append(step.name)
        self._note(step.name, kernel, bias)
        return kind.from_config(config)(tensor)

    def _spatial_half(self, step: Step, tensor: Any) -> Any:
        """The depthwise half of a separable convolution."""
        config = _plain(step.layer.get_config())
        name = f"{step.name}_{_SPATIAL}"
        shared = ("kernel_size", "strides", "padding", "dilation_rate", "depth_multiplier", "trainable")
        half = layers.DepthwiseConv2D(**{key: config[key] for key in shared}, use_bias=False, name=name)
        self._note(name, step.layer.depthwise_kernel.numpy(), None)
        return half(tensor)

    def _affine(self, step: Step, tensor: Any) -> Any:
        """A batch norm as a 1x1 depthwise convolution; a vector becomes an image of one pixel for it."""
        scale, shift = scale_and_shift(step.layer)
        is_vector = len(tensor.shape) == _FLAT_RANK
        if is_vector:
            tensor = layers.Reshape((1, 1, tensor.shape[-1]), name=f"{step.name}_pixel")(tensor)
        own = layers.DepthwiseConv2D(1, name=step.name, trainable=step.layer.trainable)
        self._note(step.name, scale.reshape(1, 1, -1, 1), shift)
        tensor = own(tensor)
        return layers.Flatten(name=f"{step.name}_vector")(tensor) if is_vector else tensor

    def _scaled(self, step: Step, tensor: Any) -> Any:
        """A Rescaling as a 1x1 depthwise convolution that stays as it is."""
        channels = tensor.shape[-1]
        scale, shift = (
            np.broadcast_to(np.asarray(values, np.float64).reshape(-1), (channels,))
            for values in (step.layer.scale, step.layer.offset)
        )
        self._note(step.name, scale.reshape(1, 1, -1, 1), shift)
        return layers.DepthwiseConv2D(1, name=step.name, trainable=False)(tensor)

    def _note(self, name: str, kernel: np.ndarray, bias: np.ndarray | None) -> None:
        biases = [] if bias is None else [bias.astype(np.float32)]
        # Every zero becomes the plain 0.0, also where a negative scale made -0.0 of it.
        self.weights[name] = [np.where(kernel == 0, 0.0, kernel).astype(np.float32), *biases]


def _plain(config: Mapping[str, Any]) -> dict[str, Any]:
    """A layer's config without what acts on weights from outside; weights are set, so that none need be drawn."""
    plain = dict(config)
    for key in plain:
        if key.endswith(("_regularizer", "_constraint")):
            plain[key] = None
        elif key.endswith("_initializer"):
            plain[key] = "zeros"
    return plain


def _pointwise(config: Mapping[str, Any]) -> dict[str, Any]:
    """The config of the 1x1 half of a separable convolution."""
    return {
        **{key: config[key] for key in ("filters", "activation", "trainable", "dtype")},
        "kernel_size": 1,
        "kernel_initializer": "zeros",
    }
