"""TF-MOT quantizers and configs that round as the converter and the int8 kernels will.

Why not TF-MOT's own: they keep the range of a kernel as a variable that lags a step behind it (and behind a running
average of weights), give a depthwise kernel one scale where TFLite has one per channel, round the parts of a
concatenation twice, and their gradient kernel refuses to run on a GPU when TensorFlow is asked to be deterministic.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from contextvars import ContextVar
from typing import Any

import numpy as np
import tensorflow as tf

from cxr_compress.keras2 import keras, tfmot
from cxr_compress.lite.qat.fold import KERNELS

_api = tfmot().quantization.keras
_Quantizer: Any = _api.quantizers.Quantizer
_QuantizeConfig: Any = _api.QuantizeConfig
_QuantizeWrapper: Any = _api.QuantizeWrapperV2

# Weight of what was before in the running range: it follows the last hundred steps. TF-MOT's 0.999 never arrives in a
# fine-tuning of a few hundred; ranges start from calibration, so that none is needed to forget a bad start.
_DECAY = 0.99
# A channel's scale is at least this share of its layer's largest: its rounding stays far below one code of the result,
# and its bias, an int32 in steps of input scale x kernel scale, within int32.
_SMALLEST_SHARE = 1.0 / 1024
_SMALLEST = 1e-6  # of any range: a dead activation or kernel still needs a scale
_STEPS, _LOWEST_CODE = 255.0, -128.0
_NUDGE = 0.004  # of a code

_exporting: ContextVar[bool] = ContextVar("exporting", default=False)


@contextlib.contextmanager
def export() -> Iterator[None]:
    """Within it a model is called as the converter wants it: bare roundings that mark ranges, nothing around them."""
    token = _exporting.set(True)
    try:
        yield
    finally:
        _exporting.reset(token)


class SharedRange:
    """The range of activations that TFLite gives one scale: the parts of a concatenation, what a pool reads and gives.

    Each member follows its own smallest and largest value; what is rounded to is the least range that holds all.
    Shared so that nothing is rounded again and again on its way through a dense block.
    """

    def __init__(self, members: int) -> None:
        """Make room for so many members."""
        self._members = members
        self._low: Any = None
        self._high: Any = None

    def build(self, layer: Any) -> None:
        """Make the variables, as weights of the first layer that asks: a checkpoint of the model holds them."""
        if self._low is None:
            # -6 to 6 as in TF-MOT, until calibration sets them.
            self._low, self._high = (
                layer.add_weight(
                    f"range_{end}",
                    shape=(self._members,),
                    initializer=keras.initializers.Constant(start),
                    trainable=False,
                )
                for end, start in (("low", -6.0), ("high", 6.0))
            )

    def assign(self, ranges: Sequence[tuple[float, float]]) -> None:
        """Set the ranges of all members, in their order."""
        self._low.assign([low for low, _ in ranges])
        self._high.assign([high for _, high in ranges])

    def follow(self, member: int, values: Any) -> None:
        """Take a training batch's values of one member into its running range."""
        place = np.arange(self._members) == member
        for held, now in ((self._low, tf.reduce_min(values)), (self._high, tf.reduce_max(values))):
            held.assign(tf.where(place, _DECAY * held + (1.0 - _DECAY) * tf.stop_gradient(now), held))

    def ends(self) -> tuple[Any, Any]:
        """The range that holds all members and zero, which padding and ReLU need as a code of its own."""
        low = tf.minimum(tf.reduce_min(self._low), 0.0)
        return low, tf.maximum(tf.maximum(tf.reduce_max(self._high), 0.0), low + _SMALLEST)


class ActivationQuantizer(_Quantizer):
    """Rounds an activation to the 256 codes of its range."""

    def __init__(self, shared: SharedRange, member: int, *, means: bool = False) -> None:
        """Be one member of a range; `means`: what arrives are means of codes of that same range."""
        self._shared, self._member, self._means = shared, member, means

    def build(self, tensor_shape: Any, name: str, layer: Any) -> dict[str, Any]:
        """Make the range's variables where they are not there yet."""
        self._shared.build(layer)
        return {}

    def __call__(self, inputs: Any, training: Any, weights: Any, **kwargs: Any) -> Any:
        """Round; in training the range follows the batch first."""
        if training:
            self._shared.follow(self._member, inputs)
        low, high = self._shared.ends()
        if self._means and not _exporting.get():
            inputs = _break_ties(inputs, low, high)
        return fake_quant(inputs, low, high, training=bool(training))

    def get_config(self) -> dict[str, Any]:
        """Nothing: a quantized model is built from its float model again, never from a configuration."""
        return {}


class KernelQuantizer(_Quantizer):
    """Rounds a kernel to -127 to 127 of its own largest magnitude: per output channel, a dense one as a whole."""

    def __init__(self, layer_type: type) -> None:
        """Round kernels of this type of layer."""
        self._type = layer_type

    def build(self, tensor_shape: Any, name: str, layer: Any) -> dict[str, Any]:
        """Nothing to keep: the range is always that of the kernel as it is."""
        return {}

    def __call__(self, inputs: Any, training: Any, weights: Any, **kwargs: Any) -> Any:
        """Round."""
        return quantize_kernel(tf.convert_to_tensor(inputs), self._type, training=bool(training))

    def get_config(self) -> dict[str, Any]:
        """Nothing, as above."""
        return {}


def quantize_kernel(kernel: Any, layer_type: type, *, training: bool) -> Any:
    """A kernel rounded as TFLite stores it: symmetric, narrow, exact zeros kept."""
    if layer_type is keras.layers.Dense:
        # One scale: a FULLY_CONNECTED with a scale per channel is a version that tflite-runtime 2.14 refuses.
        largest = tf.maximum(tf.reduce_max(tf.abs(kernel)), _SMALLEST)
        return fake_quant(kernel, -largest, largest, training=training, narrow=True)
    shape = kernel.shape
    if layer_type is keras.layers.DepthwiseConv2D:
        # The layout that the converter gives it, whose last axis is the one with the scales.
        kernel = tf.reshape(kernel, (*shape[:2], 1, shape[2] * shape[3]))
    largest = tf.reduce_max(tf.abs(kernel), axis=(0, 1, 2))
    largest = tf.maximum(largest, tf.maximum(tf.reduce_max(largest) * _SMALLEST_SHARE, _SMALLEST))
    rounded = fake_quant(kernel, -largest, largest, training=training, narrow=True)
    return tf.reshape(rounded, shape)


def fake_quant(values: Any, low: Any, high: Any, *, training: bool, narrow: bool = False) -> Any:
    """Round to 8 bits between two ends (a scalar each, or one per last axis).

    In training the gradient passes straight through within the range and stops outside of it. TensorFlow's own does the
    same, but also sums up gradients of the ends, which nobody uses and which its GPU kernel cannot do in a fixed order.

    Source: Jacob et al. (arXiv 1712.05877), section 3.
    """
    api = tf.quantization
    rounding = api.fake_quant_with_min_max_vars_per_channel if low.shape.rank else api.fake_quant_with_min_max_vars
    if not training:
        # Bare, as the converter looks for it.
        return rounding(values, low, high, narrow_range=narrow)

    @tf.custom_gradient
    def straight_through(given: Any) -> tuple[Any, Any]:
        inside = tf.logical_and(given >= low, given <= high)

        def backward(gradient: Any) -> Any:
            return tf.where(inside, gradient, 0.0)

        return rounding(given, low, high, narrow_range=narrow), backward

    return straight_through(values)


def _break_ties(means: Any, low: Any, high: Any) -> Any:
    """Means of codes, moved a little so that a half is rounded as AVERAGE_POOL_2D does: away from code 0.

    Of four codes every fourth mean ends in a half, and rounding them all up would shift each result by an eighth of a
    code. The lattice of means is finer than the move only for windows of more than 100 pixels.
    """
    step = (high - low) / _STEPS
    zero_point = tf.round(_LOWEST_CODE - low / step)
    code = tf.stop_gradient(means) / step + zero_point
    return means + _NUDGE * step * tf.sign(code)


class LayerConfig(_QuantizeConfig):
    """What is rounded of one layer: its kernel if it has one, and its result where it has a range.

    Attributes:
        kernel: the variable that is trained, once the layer is built. The layer's own attribute is a rounded tensor
            from then on.
    """

    def __init__(self, layer_type: type, output: ActivationQuantizer | None) -> None:
        """Round the kernel that this type of layer has, and the result if there is a quantizer for it."""
        self._type, self._output = layer_type, output
        self.kernel: Any = None

    def get_weights_and_quantizers(self, layer: Any) -> list[tuple[Any, Any]]:
        """The kernel, if any."""
        if self._type not in KERNELS:
            return []
        self.kernel = getattr(layer, KERNELS[self._type])
        return [(self.kernel, KernelQuantizer(self._type))]

    def get_activations_and_quantizers(self, layer: Any) -> list[Any]:
        """None: an activation within a layer is rounded as the layer's result."""
        return []

    def set_quantize_weights(self, layer: Any, quantize_weights: Sequence[Any]) -> None:
        """Let the layer compute with the rounded kernel."""
        for kernel in quantize_weights:
            setattr(layer, KERNELS[self._type], kernel)

    def set_quantize_activations(self, layer: Any, quantize_activations: Sequence[Any]) -> None:
        """Nothing to set."""

    def get_output_quantizers(self, layer: Any) -> list[Any]:
        """The result, if it has a range."""
        return [] if self._output is None else [self._output]

    def get_config(self) -> dict[str, Any]:
        """Nothing, as above."""
        return {}


class QuantizedLayer(_QuantizeWrapper):
    """TF-MOT's wrapper, without its step counter and with layers that stay frozen where they were.

    The counter is an int32 among the weights, which nothing here reads and no average of weights can be taken of.
    """

    def add_weight(self, name: str | None = None, *args: Any, **kwargs: Any) -> Any:
        """As every layer does, but for the counter."""
        return None if name == "optimizer_step" else super().add_weight(name, *args, **kwargs)

    @tf.autograph.experimental.do_not_convert
    def call(self, inputs: Any, training: Any = None, **kwargs: Any) -> Any:
        """As TF-MOT does, for True or False; while Keras only draws the model, which it does with neither, as False.

        Both branches drawn for each of the hundreds of roundings of a DenseNet121, or AutoGraph reading TF-MOT for
        each, would take longer than all the rest.
        """
        return super().call(inputs, training=training if isinstance(training, (bool, int)) else False, **kwargs)

    @property
    def trainable_weights(self) -> list[Any]:
        """Kernel and bias; none of a frozen layer, whose kernel TF-MOT would train."""
        return super().trainable_weights if self.layer.trainable else []

    @property
    def non_trainable_weights(self) -> list[Any]:
        """Ranges, and all of a frozen layer."""
        frozen = [] if self.layer.trainable else super().trainable_weights
        return self._dedup_weights([*frozen, *super().non_trainable_weights])
