"""The class activation map as a second output: which part of a film each logit comes from.

A head of global mean and Dense gives ``logit = mean over positions (features @ kernel) + bias``: the mean may as well
be taken last. So a 1x1 convolution with the Dense layer's kernel shows what every position adds to a logit, and
``mean(cam) + bias == logit`` holds by algebra, which makes it a test of every file. It costs one small convolution,
which every device has, in int8 and on an Edge TPU alike.

Source: Zhou et al. 2016, arXiv:1512.04150, section 2.
"""

from __future__ import annotations

from typing import Any, NoReturn

from cxr_compress.device.runner import CAM_NAME
from cxr_compress.errors import UnsupportedLayerError
from cxr_compress.keras2 import keras

_layers = keras.layers
# Layers that hand (batch, channels) on as it is when a model is only run.
_PASSING = (_layers.Dropout, _layers.SpatialDropout2D, _layers.Flatten, _layers.Reshape)
_FLAT_RANK = 2


def has_cam(model: Any) -> bool:
    """True for a model as `with_cam` makes it: logits first, then the map."""
    return list(getattr(model, "output_names", None) or [])[1:] == [CAM_NAME]


def with_cam(model: Any) -> Any:
    """A plain model with the outputs logits (batch, k) and "cam" (batch, h, w, k); `model` computes what it did.

    The new model shares the layers of the old one, so it is there at once, and has a copy of the head's kernel: make it
    when training is over. Where evidence lies is shown on the grid of the last feature map (7 x 7 for a DenseNet at 224
    px); it is no outline of a disease.

    Args:
        model: functional or Sequential tf_keras model that ends GlobalAveragePooling2D -> (Dropout) -> Dense, linear.

    Raises:
        UnsupportedLayerError: another head; it names what was found there.
    """
    if not getattr(model, "_is_graph_network", False) or len(model.outputs) != 1:
        count = len(getattr(model, "outputs", None) or [])
        _refuse(f"{type(model).__name__} {getattr(model, 'name', '')!r} with {count} outputs")
    if any(layer.name == CAM_NAME for layer in model.layers):
        _refuse(f"a layer that is called {CAM_NAME!r} already")
    dense, features = _head(model.outputs[0])
    cam = _layers.Conv2D(dense.units, 1, use_bias=False, dtype="float32", name=CAM_NAME)
    result = keras.Model(model.inputs, [model.outputs[0], cam(features)], name=model.name)
    cam.set_weights([dense.kernel.numpy()[None, None]])
    return result


def _head(output: Any) -> tuple[Any, Any]:
    """The Dense layer that makes an output, and the feature map whose mean it reads."""
    dense, tensor = _maker(output)
    if type(dense) is not _layers.Dense:
        _refuse(f"{type(dense).__name__} {dense.name!r} at its end")
    if dense.activation is not keras.activations.linear:
        _refuse(f"{dense.activation.__name__} in {dense.name!r}")
    if len(output.shape) != _FLAT_RANK:
        _refuse(f"{dense.name!r}, which gives {tuple(output.shape)}")
    while True:
        layer, source = _maker(tensor)
        if isinstance(layer, _layers.GlobalAveragePooling2D):
            break
        if not isinstance(layer, _PASSING):
            _refuse(f"{type(layer).__name__} {layer.name!r} before {dense.name!r}")
        tensor = source
    if layer.data_format != "channels_last":
        _refuse(f"{layer.name!r} with its channels first")
    return dense, source


def _maker(tensor: Any) -> tuple[Any, Any]:
    """The layer that makes a tensor, and the one tensor it reads (None for an input or a layer of several)."""
    node = tensor.node
    sources = [] if node.is_input else node.keras_inputs
    return node.layer, sources[0] if len(sources) == 1 else None


def _refuse(found: str) -> NoReturn:
    raise UnsupportedLayerError(
        "expected a model that ends GlobalAveragePooling2D, Dense without activation, from which the class activation "
        f"map is exact; found {found}: ask for the logits alone, or give the model that head"
    )
