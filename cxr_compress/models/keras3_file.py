"""`.keras` files that Keras 3 wrote, rebuilt in tf_keras: layers that both have, with the weights of the file.

Source of the format: keras/src/saving/saving_lib.py and serialization_lib.py. Configurations differ in how a call, a
precision and the input are written, and weights lie under names that count the classes of the layers in the order of
the configuration; tf_keras sorts the layers of a model anew, so weights go by the order in the file, not by its own.
"""

from __future__ import annotations

import inspect
import io
import zipfile
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from cxr_compress.errors import ModelFileError
from cxr_compress.keras2 import keras

_WEIGHTS = "model.weights.h5"
_MODELS = {"Functional": "tf_keras.src.engine.functional", "Sequential": "keras"}
# Layers and activations that give the same numbers in both, as the tests compare them one by one.
# fmt: off
LAYERS = frozenset((
    "InputLayer", "Dense", "Conv2D", "DepthwiseConv2D", "SeparableConv2D", "Conv2DTranspose", "BatchNormalization",
    "LayerNormalization", "GroupNormalization", "Activation", "ReLU", "LeakyReLU", "ELU", "PReLU", "Softmax",
    "MaxPooling2D", "AveragePooling2D", "GlobalAveragePooling2D", "GlobalMaxPooling2D", "Flatten", "Reshape",
    "Permute", "Dropout", "SpatialDropout1D", "SpatialDropout2D", "SpatialDropout3D", "AlphaDropout", "GaussianNoise",
    "GaussianDropout", "Identity", "CenterCrop", "Resizing", "Add", "Subtract", "Multiply",
    "Average", "Maximum", "Minimum", "Concatenate", "ZeroPadding2D", "Cropping2D", "UpSampling2D", "Rescaling",
    "Normalization",
))
# Layers that change images in training only, as the tests run them; RandomCrop is none, its images get another size.
AUGMENTATIONS = frozenset((
    "RandomBrightness", "RandomColorDegeneration", "RandomColorJitter", "RandomContrast", "RandomElasticTransform",
    "RandomErasing", "RandomFlip", "RandomGaussianBlur", "RandomGrayscale", "RandomHue", "RandomInvert",
    "RandomPerspective", "RandomPosterization", "RandomRotation", "RandomSaturation", "RandomSharpness", "RandomShear",
    "RandomTranslation", "RandomZoom", "AugMix", "RandAugment", "MixUp", "CutMix",
))
ACTIVATIONS = frozenset((
    "linear", "relu", "relu6", "sigmoid", "softmax", "tanh", "softplus", "softsign", "elu", "selu", "gelu", "silu",
    "swish", "exponential", "mish", "leaky_relu", "log_softmax",
))
# fmt: on
_RENAMED = {"InputLayer": {"batch_shape": "batch_input_shape"}, "LeakyReLU": {"negative_slope": "alpha"}}
# Options that tf_keras does not know, at the values at which both do the same.
_USUAL = {"data_format": "channels_last", "fill_mode": "constant", "fill_value": 0.0}
_TRAINING = ("training", True)
_RESIZED_ALIKE = ("bilinear", "nearest")
_PRECISIONS = frozenset(("float32", "mixed_float16", "mixed_bfloat16", "float16", "float64"))
_OF_EVERY_LAYER = frozenset(("name", "trainable", "dtype", "activity_regularizer"))


def is_keras3_config(config: Any) -> bool:
    """Whether a configuration is written as Keras 3 writes it: an input of its own wording, or a call."""
    if isinstance(config, dict):
        own = "batch_shape" in config or config.get("class_name") == "__keras_tensor__"
        return own or any(is_keras3_config(value) for value in config.values())
    return isinstance(config, list) and any(is_keras3_config(value) for value in config)


def load_keras3(path: Path, config: dict[str, Any], progress: Callable[[str], None] | None = None) -> Any:
    """Rebuild a functional or Sequential model of a file; layers of augmentation, which do nothing here, pass on.

    Args:
        path: the `.keras` file, whose archive is whole.
        config: its `config.json`.
        progress: takes one line about the layers that are left out.

    Raises:
        ModelFileError: it has a layer, an activation, an option or a way of calling that tf_keras does not have or
            computes otherwise, or weights that do not fit its layers; the line names it.
    """
    kind = config.get("class_name")
    if kind not in _MODELS:
        raise ModelFileError(f"the model is {kind!r}, and only functional and Sequential models can be rebuilt")
    model = getattr(keras, "Model" if kind == "Functional" else kind).from_config(_model(config["config"]))
    with zipfile.ZipFile(path) as archive:
        if _WEIGHTS not in archive.namelist():
            raise ModelFileError(f"it has no {_WEIGHTS}")
        _load_weights(model, config["config"], archive.read(_WEIGHTS))
    _check_crops(model)
    augmenting = sorted(_augmenting(config["config"]))
    if augmenting and progress is not None:
        progress(f"{path.name}: its layers {', '.join(augmenting)} change images in training only and are left out")
    return model


def _augmenting(config: dict[str, Any]) -> Iterator[str]:
    """The names of the layers that are left out, those in nested models too."""
    for entry in config["layers"]:
        if entry["class_name"] in _MODELS:
            yield from _augmenting(entry["config"])
        elif _only_augments(entry):
            yield entry["config"]["name"]


def _only_augments(entry: dict[str, Any]) -> bool:
    if entry.get("module") != "keras.layers":
        return False
    if entry["class_name"] == "Pipeline":
        return all(_only_augments(inner) for inner in entry["config"]["layers"])
    return entry["class_name"] in AUGMENTATIONS


def _check_crops(model: Any) -> None:
    """Refuse a CenterCrop of an image that is smaller: each Keras resizes it in its own way."""
    for layer in model._flatten_layers(include_self=False):
        if isinstance(layer, keras.layers.CenterCrop):
            sides = layer.input_shape[1:3]
            if any(
                size is None or size < least for size, least in zip(sides, (layer.height, layer.width), strict=True)
            ):
                raise ModelFileError(
                    f"its layer {layer.name} (CenterCrop) cuts {layer.height} x {layer.width} out of {sides[0]} x "
                    f"{sides[1]}, which tf_keras computes otherwise"
                )


def _model(config: dict[str, Any]) -> dict[str, Any]:
    """Translate the configuration of a model."""
    nested = {entry["config"].get("name") for entry in config["layers"] if entry["class_name"] in _MODELS}
    translated = {"name": config["name"], "trainable": config.get("trainable", True)}
    translated["layers"] = [_entry(entry, nested) for entry in config["layers"]]
    for ends in ("input_layers", "output_layers"):
        if ends in config:
            translated[ends] = [_source(source, nested) for source in _ends(config[ends])]
    if "input_layers" not in config:
        translated.pop("trainable")  # of a Sequential model, which has none of its own
    return translated


def _ends(value: Any) -> list[Any]:
    """The inputs or outputs of a model as a list, whatever they came in."""
    if not isinstance(value, list):
        raise ModelFileError("its inputs or outputs come in a dictionary: give the model plain ones")
    return [value] if value and isinstance(value[0], str) else value


def _source(source: list[Any], nested: set[Any]) -> list[Any]:
    """A tensor as (layer, call, output); tf_keras counts the call that made a model itself as its first one."""
    name, call, output = source
    return [name, call + (name in nested), output]


def _entry(entry: dict[str, Any], nested: set[Any]) -> dict[str, Any]:
    """Translate a layer."""
    kind, name = entry["class_name"], entry["config"].get("name", "")
    if kind in _MODELS:
        translated = {"module": _MODELS[kind], "class_name": kind, "config": _model(entry["config"])}
    elif _only_augments(entry):
        translated = {"module": "keras.layers", "class_name": "Identity", "config": {"name": name}}
    elif kind in LAYERS and entry.get("module") == "keras.layers":
        translated = {"module": "keras.layers", "class_name": kind, "config": _layer(kind, name, entry["config"])}
    else:
        what = "the layer" if entry.get("module") == "keras.layers" else "the operation"
        raise ModelFileError(f"it has {what} {kind} ({name}), which tf_keras does not have or computes otherwise")
    translated |= {"registered_name": None, "name": name}
    if "inbound_nodes" in entry:
        translated["inbound_nodes"] = [_call(call, name, nested) for call in entry["inbound_nodes"]]
        for call in translated["inbound_nodes"] if translated["class_name"] == "Identity" else ():
            call[0][3].clear()  # it is called with an image alone
    return translated


def _layer(kind: str, name: str, config: dict[str, Any]) -> dict[str, Any]:
    """Translate the options of a layer; one that tf_keras does not know may be left out only where it is off."""
    renamed = {_RENAMED.get(kind, {}).get(key, key): value for key, value in config.items()}
    known = _options(getattr(keras.layers, kind))
    off = [
        (key, value) for key, value in renamed.items() if value is None or value is False or value == _USUAL.get(key)
    ]
    unknown = [key for key in renamed if key not in known and key not in dict(off)]
    if unknown:
        raise ModelFileError(f"its layer {name} ({kind}) has the option {unknown[0]}, which tf_keras does not know")
    if renamed.get("activation", "linear") not in ACTIVATIONS:
        raise ModelFileError(
            f"its layer {name} has the activation {renamed['activation']}, which tf_keras does not have or computes "
            "otherwise"
        )
    if kind == "Resizing" and (config.get("crop_to_aspect_ratio") or config["interpolation"] not in _RESIZED_ALIKE):
        raise ModelFileError(
            f"its layer {name} (Resizing) crops or interpolates in a way that tf_keras computes otherwise"
        )
    translated = {key: _part(value) for key, value in renamed.items() if key in known}
    if "dtype" in translated:
        translated["dtype"] = _precision(name, config["dtype"])
    return translated


def _options(kind: type) -> frozenset[str]:
    """The names of the arguments of a class."""
    makers = [vars(base)["__init__"] for base in kind.__mro__ if "__init__" in vars(base)]
    names = {name for maker in makers for name in inspect.signature(maker).parameters}
    return frozenset(names) | _OF_EVERY_LAYER | {"batch_input_shape"}


def _part(value: Any) -> Any:
    """Translate an initializer, regularizer or constraint: what is not set is left out."""
    if not isinstance(value, dict) or "class_name" not in value:
        return value
    options = {key: option for key, option in value["config"].items() if option is not None}
    return {**{key: value[key] for key in ("module", "class_name") if key in value}, "config": options}


def _precision(name: str, value: Any) -> Any:
    policy = value["config"].get("name") if isinstance(value, dict) else value
    if policy not in _PRECISIONS:
        raise ModelFileError(f"its layer {name} computes in {policy}: only {', '.join(sorted(_PRECISIONS))} load")
    return policy if policy == "float32" else {"class_name": "Policy", "config": {"name": policy}}


def _call(call: Any, name: str, nested: set[Any]) -> list[Any]:
    """Translate a call of a layer: one tensor or a list of them, and options that are plain numbers."""
    arguments = call["args"]
    tensors = arguments[0] if len(arguments) == 1 and isinstance(arguments[0], list) else arguments
    # Keras 3 writes its default, training=True, and goes by how the whole model is called; tf_keras would obey it.
    options = {key: value for key, value in call["kwargs"].items() if value is not None and (key, value) != _TRAINING}
    plain = all(isinstance(value, bool | int | float | str) for value in options.values())
    known = all(isinstance(tensor, dict) and tensor.get("class_name") == "__keras_tensor__" for tensor in tensors)
    if len(arguments) != 1 or not plain or not known:
        raise ModelFileError(f"its layer {name} is called with more than one tensor or list of tensors")
    return [[*_source(tensor["config"]["keras_history"], nested), options] for tensor in tensors]


def _load_weights(model: Any, config: dict[str, Any], content: bytes) -> None:
    """Set the weights of every layer."""
    import h5py

    with h5py.File(io.BytesIO(content), "r") as file:
        for layer, place in _places(model, config, "layers"):
            values = _variables(file, f"{place}/vars")
            if isinstance(layer, keras.layers.Normalization) and values:
                values = [*values[:2], np.zeros((), np.int64)]  # tf_keras also counts what it was adapted to
            shapes = [tuple(value.shape) for value in values]
            if shapes != [tuple(weight.shape) for weight in layer.weights]:
                needed = [tuple(weight.shape) for weight in layer.weights]
                raise ModelFileError(f"its weights of {layer.name} have the shapes {shapes}, the layer needs {needed}")
            layer.set_weights(values)
            layer.finalize_state()


def _places(model: Any, config: dict[str, Any], folder: str) -> Iterator[tuple[Any, str]]:
    """Every layer that is no model, and where its weights lie."""
    counted: Counter[str] = Counter()
    for entry in config["layers"]:
        kind = keras.src.utils.generic_utils.to_snake_case(entry["class_name"])
        place = f"{folder}/{kind}_{counted[kind]}" if counted[kind] else f"{folder}/{kind}"
        counted[kind] += 1
        if entry["class_name"] == "InputLayer":
            continue  # has no weights, and a Sequential model of tf_keras does not list it
        layer = model.get_layer(entry["config"]["name"])
        if isinstance(layer, keras.Model):
            yield from _places(layer, entry["config"], f"{place}/layers")
        else:
            yield layer, place


def _variables(file: Any, place: str) -> list[np.ndarray]:
    """The arrays of a layer in their order, from this very file: HDF5 could lead to any other on the disk."""
    import h5py

    group = file
    for step in place.split("/"):
        if group.get(step, getlink=True) is None:
            return []
        if not isinstance(group.get(step, getlink=True), h5py.HardLink):
            raise ModelFileError(f"its entry {place} leads out of the file: it is refused")
        group = group[step]
    names = [str(index) for index in range(len(group))]
    if any(not isinstance(group.get(name, getlink=True), h5py.HardLink) for name in names):
        raise ModelFileError(f"its entry {place} has links or names that Keras does not write: it is refused")
    arrays = [group[name] for name in names]
    if any(not isinstance(array, h5py.Dataset) or array.is_virtual or array.external for array in arrays):
        raise ModelFileError(f"its entry {place} is not made of plain arrays: it is refused")
    return [np.asarray(array) for array in arrays]
