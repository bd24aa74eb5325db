"""Keras models on disk: `.keras` files with the same bytes for the same model, and loading that explains failures."""

from __future__ import annotations

import io
import json
import os
import tempfile
import zipfile
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from cxr_compress.errors import CompressionError, ModelFileError
from cxr_compress.files import check_keras_file, make_folder, write_bytes
from cxr_compress.keras2 import keras
from cxr_compress.models.about import ABOUT_ENTRY, LARGEST_ABOUT, ModelAbout
from cxr_compress.models.imports.chexnet_keras import KERAS1_ADVICE
from cxr_compress.models.keras3_file import is_keras3_config, load_keras3
from cxr_compress.models.logits_head import softmax_classes
from cxr_compress.models.variants import in_float32

_EPOCH = (1980, 1, 1, 0, 0, 0)  # the earliest time that a ZIP entry can carry
_METADATA = "metadata.json"
_CONFIG = "config.json"
_SAVED_MODEL = "saved_model.pb"
_ZIPPED = ".keras"
_HDF5 = (".h5", ".hdf5")
_PAIR = 2
_KERAS1, _KERAS2 = "1.", "2."
_KERAS_MODULES = ("keras", "tf_keras", "builtins")


def save_model(model: Any, path: str | Path, *, about: ModelAbout | None = None) -> None:
    """Write a model as a `.keras` file that plain `load_model` reads: at once, and without time or place in it.

    Optimizer and loss are left out (training keeps them in its run folder). Two models of equal layers and weights
    and equal `about` give equal bytes, so files can be compared and cached by their hash.

    Args:
        model: functional or Sequential; it is not changed.
        path: ends in `.keras`; an older file there is replaced once the new one is complete.
        about: findings, preprocessing and so on, kept as an entry of its own that Keras does not look at; `read_about`
            gives it back.

    Raises:
        CompressionError: the name has another ending, `about` names more or fewer findings than the model has logits
            (of two classes that exclude one another one name is enough where `positive` says whose), or the disk is
            full or not writable.
    """
    path = Path(path)
    if path.suffix != ".keras":
        raise CompressionError(f"expected a file name that ends in .keras, got {path.name}: rename the output file")
    if about is not None:
        _check_findings(model, about)
    with tempfile.TemporaryDirectory(prefix="cxr_compress_") as folder:
        raw = Path(folder) / "model.keras"
        _without_optimizer(model).save(raw, save_format="keras")
        content = _normalized(raw, {} if about is None else {ABOUT_ENTRY: about.to_bytes()})
    make_folder(path.parent)
    write_bytes(path, content)


def read_about(path: str | Path) -> ModelAbout | None:
    """Read what `save_model` stored about a model; nothing else in the file is looked at.

    Args:
        path: a model file of any kind that `load_model` reads.

    Returns:
        What the file says; None where it says nothing, as files of plain Keras and all `.h5` files do.

    Raises:
        ModelFileError: the file is missing or damaged, or a newer version wrote it.
    """
    path = Path(path)
    if path.is_dir():
        return None
    check_keras_file(path)
    if path.suffix.lower() != _ZIPPED:
        return None
    try:
        with zipfile.ZipFile(path) as archive:
            if ABOUT_ENTRY not in archive.namelist():
                return None
            if archive.getinfo(ABOUT_ENTRY).file_size > LARGEST_ABOUT:
                raise ModelFileError(f"{path.name} is damaged (its {ABOUT_ENTRY} is far too large): copy it again")
            content = archive.read(ABOUT_ENTRY)
    except (OSError, zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, RuntimeError) as error:
        raise ModelFileError(
            f"{path.name} is no complete .keras file ({_first_line(error)}): copy or export it again"
        ) from error
    return ModelAbout.from_bytes(content, path.name)


def load_model(path: str | Path, progress: Callable[[str], None] | None = None) -> Any:
    """Load a model of standard layers, uncompiled and with code execution (Lambda layers) switched off.

    Args:
        path: a `.keras` or `.h5` file that Keras 2 (tf_keras) wrote, or a `.keras` file of Keras 3 whose layers
            tf_keras also has.
        progress: takes one line about each thing that is loaded differently from how the file has it.

    Returns:
        The `keras.Model`, of tf_keras whichever Keras wrote the file, in float32 whatever precision it was trained
        in, with equal weights.

    Raises:
        CompressionError: a model was given in place of its file, see `require_model`.
        ModelFileError: the file is missing, damaged, of another kind, needs classes that Keras does not have, or holds
            weights that are no numbers.
    """
    if not isinstance(path, str | os.PathLike):
        require_model(path)
        raise CompressionError(f"expected the path of a model file, got the model {path.name} itself: use it as it is")
    path = Path(path)
    config, version = _read_config(path)
    named = ((name, module.partition(".")[0]) for name, module in _classes(config) if module)
    foreign = next((name for name, root in named if root not in _KERAS_MODULES), None)
    if foreign:
        # Keras would import whatever module the file names; a model file must not choose what code runs.
        raise ModelFileError(
            f"{path.name} needs the class {foreign}, which is not one of Keras: rebuild the model from standard layers"
        )
    of_keras3 = path.suffix.lower() == _ZIPPED and is_keras3_config(config)
    if not of_keras3 and any(name == "SpectralNormalization" for name, _ in _classes(config)):
        raise ModelFileError(
            f"{path.name} has a SpectralNormalization layer, which Keras 2 saves and cannot load: put the layer that it"
            " wraps in its place, whose kernel is normalized already, and save the model again"
        )
    try:
        if of_keras3:
            model = load_keras3(path, config, progress)
        else:
            with keras.utils.custom_object_scope(_application_layers()):
                model = keras.models.load_model(path, compile=False, safe_mode=True)
        if getattr(model, "_is_graph_network", False):
            model, note = in_float32(model)
            if note and progress is not None:
                progress(f"{path.name}: {note}")
    except Exception as error:  # Keras raises nearly every type here; the cause is kept, and named in the line
        raise ModelFileError(_why_not(path, version, error)) from error
    broken = next((weight.name for weight in model.weights if not np.isfinite(weight.numpy()).all()), None)
    if broken is not None:
        raise ModelFileError(
            f"{path.name} holds NaN or infinity in {broken}: its training failed, and no answer of it is worth "
            "anything; use a model saved before that, or train it again"
        )
    return model


def require_model(model: Any) -> None:
    """Refuse, in one line that says how to go on, an object that is no functional or Sequential model of tf_keras.

    Args:
        model: what a caller passed in.

    Raises:
        CompressionError: it is a model of Keras 3, a subclassed model, a model that is not built, or no model.
    """
    modules = [base.__module__.partition(".")[0] for base in type(model).__mro__]
    if not isinstance(model, keras.Model) and "keras" in modules:
        raise CompressionError(
            f"expected a model of tf_keras, got the Keras 3 object {getattr(model, 'name', type(model).__name__)}: "
            'write it with model.save("model.keras") and load that with cxr_compress.models.load_model'
        )
    if not isinstance(model, keras.Model):
        raise CompressionError(f"expected a Keras model, got {type(model).__name__}: load a file with load_model")
    if not getattr(model, "_is_graph_network", False):
        if isinstance(model, keras.Sequential):
            raise CompressionError(f"expected a built model, got the Sequential {model.name} without an input: add one")
        raise CompressionError(
            f"expected a functional or Sequential model, got {type(model).__name__} {model.name}, whose wiring is code "
            "(subclassed): rebuild it with keras.Model(inputs, outputs)"
        )


def _application_layers() -> dict[str, Any]:
    """Layers of models in `keras.applications` that Keras itself does not find when it loads them."""
    applications = keras.src.applications
    return {
        "LayerScale": applications.convnext.LayerScale,
        "StochasticDepth": applications.convnext.StochasticDepth,
        "CustomScaleLayer": applications.inception_resnet_v2.CustomScaleLayer,
    }


def _why_not(path: Path, version: str, error: Exception) -> str:
    if version.startswith(_KERAS1):
        return f"{path.name} was saved by Keras {version}, which tf_keras cannot rebuild: {KERAS1_ADVICE}"
    if version and not version.startswith(_KERAS2):
        reason = _first_line(error) if isinstance(error, ModelFileError) else "its configuration does not suit"
        instead = "save it as .keras instead, or" if path.suffix.lower() in _HDF5 else "for a .tflite without pruning"
        return (
            f"{path.name} was saved by Keras {version} and tf_keras cannot rebuild it: {reason}; {instead} write "
            "model.export(folder) in Keras 3 and give that folder to cxr_convert as --saved_model_dir"
        )
    return (
        f"{path.name} could not be rebuilt: {_first_line(error)}; expected a functional or Sequential model of "
        "standard Keras layers, saved by Keras 2 (tf_keras)"
    )


def _read_config(path: Path) -> tuple[Any, str]:
    """The configuration in a model file and the Keras that wrote it ("" where unknown), or what is wrong with it."""
    if (path / _SAVED_MODEL).exists():
        raise ModelFileError(f"expected a Keras file, got the SavedModel {path}: use --saved_model_dir of cxr_convert")
    if path.suffix.lower() not in (_ZIPPED, *_HDF5):
        kinds = ", ".join((_ZIPPED, *_HDF5))
        raise ModelFileError(f"expected a Keras file ({kinds}), got {path.name}: give a file that model.save() wrote")
    check_keras_file(path)
    return _read_archive(path) if path.suffix.lower() == _ZIPPED else _read_hdf5(path)


def _read_archive(path: Path) -> tuple[Any, str]:
    try:
        with zipfile.ZipFile(path) as archive:
            damaged = archive.testzip()
            metadata, config = json.loads(archive.read(_METADATA)), json.loads(archive.read(_CONFIG))
    except (OSError, zipfile.BadZipFile, KeyError, ValueError) as error:
        raise ModelFileError(
            f"{path.name} is no complete .keras file ({_first_line(error)}): copy or export it again"
        ) from error
    if damaged:
        raise ModelFileError(f"{path.name} is damaged (its part {damaged} fails its checksum): copy it again")
    return config, str(metadata.get("keras_version", ""))


def _read_hdf5(path: Path) -> tuple[Any, str]:
    import h5py

    try:
        with h5py.File(path, "r") as file:
            config, version = file.attrs.get("model_config"), file.attrs.get("keras_version", "")
            if config is None:
                raise ModelFileError(f"{path.name} holds weights but no model: write it with model.save()")
            config = json.loads(config)
            if not version and _is_keras1(config):
                version = f"{_KERAS1}x"
    except (OSError, ValueError) as error:
        raise ModelFileError(
            f"{path.name} is no complete HDF5 file ({_first_line(error)}): copy or export it again"
        ) from error
    if any(name == "Lambda" for name, _ in _classes(config)):
        # The old format keeps a Lambda's bytecode and Keras would run it.
        raise ModelFileError(f"{path.name} has a Lambda layer, whose code is not run: use a standard layer instead")
    return config, version.decode("utf-8", "replace") if isinstance(version, bytes) else str(version)


def _is_keras1(config: Any) -> bool:
    """Whether a configuration is worded as Keras 1 did, whose first files do not say their version."""
    if isinstance(config, dict):
        return bool({"nb_filter", "border_mode", "dim_ordering"} & set(config)) or any(map(_is_keras1, config.values()))
    return isinstance(config, list) and any(map(_is_keras1, config))


def _classes(config: Any) -> Iterator[tuple[str, str]]:
    """Yield name and module ("" where unsaid) of every class anywhere in a configuration."""
    if isinstance(config, dict):
        if isinstance(config.get("class_name"), str):
            yield config["class_name"], str(config.get("module", ""))
        for value in config.values():
            yield from _classes(value)
    elif isinstance(config, list):
        for value in config:
            yield from _classes(value)


def _check_findings(model: Any, about: ModelAbout) -> None:
    """Require a name for every logit; two classes that exclude one another may have one, if it says which it is of."""
    logits, names = int(model.output_shape[-1]), len(about.findings)
    if about.positive is not None and not (logits == _PAIR and _excludes(model, about)):
        raise CompressionError(
            "about.positive says which of two classes that exclude one another is the finding, the model gives "
            f"{logits} outputs that are no such pair: leave positive out"
        )
    if about.activation == "softmax" and logits < _PAIR:
        raise CompressionError(
            f"classes that exclude one another (softmax) need two or more outputs, the model gives {logits}: say "
            "activation='sigmoid'"
        )
    if logits == names:
        return
    if logits == _PAIR and names == 1 and _excludes(model, about):
        if about.positive is not None:
            return
        raise CompressionError(
            f"the model gives two classes that exclude one another, about names one finding, {about.findings[0]!r}: "
            "say which class that is with positive=0 or positive=1, or name both classes"
        )
    raise CompressionError(f"the model has {logits} logits, about names {names} findings: give one name per logit")


def _excludes(model: Any, about: ModelAbout) -> bool:
    """Whether the outputs are classes of which each image has exactly one, by `about` or by a softmax at the end."""
    return about.activation == "softmax" or softmax_classes(model) > 1


def _without_optimizer(model: Any) -> Any:
    if getattr(model, "optimizer", None) is None:
        return model
    plain = keras.models.clone_model(model)
    plain.set_weights(model.get_weights())
    return plain


def _normalized(raw: Path, extra: dict[str, bytes]) -> bytes:
    """The same archive with the extra entries, in the order of names, with fixed times and no date of saving."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(raw) as source, zipfile.ZipFile(buffer, "w", zipfile.ZIP_STORED) as target:
        for name in sorted([*source.namelist(), *extra]):
            content = extra[name] if name in extra else source.read(name)
            if name == _METADATA:
                version = json.loads(content)["keras_version"]
                content = json.dumps({"keras_version": version}).encode()
            target.writestr(zipfile.ZipInfo(name, _EPOCH), content)
    return buffer.getvalue()


def _first_line(error: BaseException, limit: int = 200) -> str:
    line = (str(error).strip() or type(error).__name__).splitlines()[0]
    return line if len(line) <= limit else f"{line[:limit]}..."
