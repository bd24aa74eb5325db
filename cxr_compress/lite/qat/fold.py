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

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from cxr_compress.keras2 import keras
from cxr_compress.lite.qat.graph import KERNELS, Step, Steps, is_linear, read_steps

layers = keras.layers
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
