"""Put trained weights back into the architecture they came from."""

from __future__ import annotations

from typing import Any

import numpy as np

from cxr_compress.errors import CompressionError
from cxr_compress.keras2 import keras
from cxr_compress.lite.qat.fold import Origin, per_channel, scale_and_shift, times
from cxr_compress.lite.qat.graph import KERNELS, read_steps
from cxr_compress.lite.qat.prepare import QatModel

_SMALLEST_SCALE = 1e-6


def strip_qat(qat: QatModel) -> Any:
    """Return the original architecture with the weights that quantization-aware training gave it.

    A plain keras.Model of the original's layers and names, which loads without custom objects; what it computes is what
    `qat.model` computes without rounding, up to float32 rounding. Batch norms keep their statistics and scales, which
    still fit, and take the change into their offset; weights that were zero by a mask are zero. Quantizing it after
    training uses the trained weights, but not the trained ranges: `convert_qat` does.

    Raises:
        CompressionError: a batch norm without gamma would need a negative scale; it names the layer.
    """
    plain = keras.models.clone_model(qat.original)
    plain.set_weights(qat.original.get_weights())
    layers = {step.name: step.layer for step in read_steps(plain).calls}
    for name, (kernel, bias) in qat.kernels.items():
        _put_back(layers, qat.origins[name], kernel.numpy(), None if bias is None else bias.numpy())
    return plain


def _put_back(layers: dict[str, Any], origin: Origin, kernel: np.ndarray, bias: np.ndarray | None) -> None:
    """Write one kernel and bias into the layer, or batch norm, or both, that they came from."""
    if not (origin.layer or origin.norm):
        return  # a Rescaling, which has no weights of its own
    if not origin.layer:
        _into_norm(layers[origin.norm], origin.norm, kernel.reshape(-1), bias)
        return
    layer = layers[origin.layer]
    if origin.spatial:
        layer.depthwise_kernel.assign(kernel)
        return
    if origin.norm:
        kernel = _out_of_norm(layer, layers[origin.norm], kernel, bias)
    elif bias is not None:
        layer.bias.assign(bias)
    getattr(layer, KERNELS[type(layer)]).assign(kernel)


def _out_of_norm(layer: Any, norm: Any, kernel: np.ndarray, bias: np.ndarray | None) -> np.ndarray:
    """Divide a kernel by the batch norm behind it, whose offset takes up the bias; returns the kernel."""
    scale, _ = scale_and_shift(norm)
    if norm.gamma is not None:
        # Nothing can be divided by a scale of next to nothing: such a channel gets one of 1.
        dead = np.abs(scale) < _SMALLEST_SCALE
        norm.gamma.assign(np.where(dead, _deviation(norm), norm.gamma.numpy()))
        scale = np.where(dead, 1.0, scale)
    _offset(norm, layer.bias.numpy() if layer.use_bias else 0.0, scale, bias)
    return times(kernel, 1.0 / per_channel(type(layer), kernel, scale))


def _into_norm(norm: Any, name: str, scale: np.ndarray, bias: np.ndarray | None) -> None:
    """Make a batch norm multiply by a scale and add a bias."""
    if norm.gamma is not None:
        norm.gamma.assign(scale * _deviation(norm))
    else:
        # Its scale is the deviation alone, which has a sign and an end.
        variance = 1.0 / np.square(scale.astype(np.float64)) - norm.epsilon
        if np.any(scale <= 0) or np.any(variance < 0):
            raise CompressionError(
                f"training gave the batch norm {name} a scale that it cannot have without gamma: build the model with "
                "scale=True there, or train on at a lower rate"
            )
        norm.moving_variance.assign(variance)
    if norm.beta is None:
        # Its offset is then divided by the scale, which may be 0.
        scale = np.where(np.abs(scale) < _SMALLEST_SCALE, _SMALLEST_SCALE, scale)
    _offset(norm, 0.0, scale, bias)


def _offset(norm: Any, before: Any, scale: np.ndarray, bias: np.ndarray | None) -> None:
    """Set a batch norm's offset so that it gives `bias` where the layer before gives `before`."""
    wanted = 0.0 if bias is None else bias.astype(np.float64)
    if norm.beta is None:
        norm.moving_mean.assign(before - wanted / scale)
    else:
        norm.beta.assign(wanted - (before - norm.moving_mean.numpy().astype(np.float64)) * scale)


def _deviation(norm: Any) -> np.ndarray:
    return np.sqrt(norm.moving_variance.numpy().astype(np.float64) + norm.epsilon)
