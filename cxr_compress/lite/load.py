"""Reads a SavedModel into something that `convert` takes; Keras files are read by models.keras_file."""

from __future__ import annotations

import hashlib
from pathlib import Path

from cxr_compress.errors import ModelFileError
from cxr_compress.lite.freeze import FrozenFunction, freeze_signature

_SAVED_MODEL = "saved_model.pb"


def load_saved_model(
    folder: str | Path,
    *,
    signature_key: str = "serving_default",
    tags: tuple[str, ...] = ("serve",),
    input_size: int | tuple[int, int] | None = None,
) -> FrozenFunction:
    """Load a SavedModel (of tf_keras, Keras 3's ``model.export`` or plain TensorFlow) and freeze one signature.

    Raises:
        ModelFileError: missing, no SavedModel, damaged, or without that tag or signature.
        CompressionError: as `freeze`.
    """
    import tensorflow as tf

    folder = Path(folder)
    if not (folder / _SAVED_MODEL).is_file():
        raise ModelFileError(f"expected a SavedModel folder with {_SAVED_MODEL} in it, got {folder}: give that folder")
    try:
        loaded = tf.saved_model.load(str(folder), tags=list(tags))
    except Exception as error:  # as above: TensorFlow raises anything from DecodeError to KeyError
        raise ModelFileError(
            f"{folder} cannot be read as a SavedModel with tags {tags}: {_first_line(error)}"
        ) from error
    if signature_key not in loaded.signatures:
        raise ModelFileError(
            f"{folder} has no signature {signature_key!r}, it has {sorted(loaded.signatures)}: give one of those"
        )
    return freeze_signature(loaded.signatures[signature_key], input_size=input_size)


def fingerprint(path: str | Path) -> str:
    """sha256 (hexadecimal) of a file, or of the names and contents of a folder's files."""
    path = Path(path)
    if path.is_file():
        return hashlib.sha256(path.read_bytes()).hexdigest()
    digest = hashlib.sha256()
    for file in sorted(file for file in path.rglob("*") if file.is_file()):
        digest.update(file.relative_to(path).as_posix().encode() + b"\0")
        digest.update(hashlib.sha256(file.read_bytes()).digest())
    return digest.hexdigest()


def _first_line(error: Exception) -> str:
    lines = [line for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: {lines[0].strip() if lines else 'no reason given'}"
