"""Weights from a plain NumPy archive: one array per variable, named ``index|variable name``, in the model's order."""

from __future__ import annotations

import io
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from cxr_compress.errors import ModelFileError
from cxr_compress.models.chexnet import HEAD_NAME


@dataclass(frozen=True)
class ImportReport:
    """What a foreign weights file and a model had in common; an import is all or nothing.

    Attributes:
        arrays: Variables that were set: all of the model's.
        parameters: Numbers in them, batch-norm statistics included.
        stored_dtype: As they lay in the file; the model holds float32.
        renamed: Name in the file -> name in the model, where the layer (the head) was called differently.
    """

    arrays: int
    parameters: int
    stored_dtype: str
    renamed: dict[str, str]


def load_npz_weights(model: Any, path: str | Path) -> ImportReport:
    """Set every variable of ``model`` from an archive; either all arrays match or nothing is changed.

    Each array must have its place's index, its variable's name and shape, and finite numbers. Only the head may have
    been called differently, since training scripts name it as they like.

    Args:
        model: A ``chexnet`` of the size that the archive was made from.
        path: ``.npz`` of float16 or float32 arrays; nothing in it is unpickled.

    Returns:
        What was set.

    Raises:
        ModelFileError: The file is missing, damaged or made from another network.
    """
    path = Path(path)
    stored = _read(path)
    if len(stored) != len(model.weights):
        raise ModelFileError(
            f"{path.name} holds {len(stored)} arrays, the model has {len(model.weights)} variables: build the model "
            "with the width and blocks that the weights were trained with"
        )
    for index, (variable, (key, array)) in enumerate(zip(model.weights, stored.items(), strict=True)):
        _check_array(index, variable, key, array, path.name)
    model.set_weights([array.astype(np.float32) for array in stored.values()])
    names = {key.partition("|")[2]: variable.name for key, variable in zip(stored, model.weights, strict=True)}
    return ImportReport(
        arrays=len(stored),
        parameters=sum(array.size for array in stored.values()),
        stored_dtype=", ".join(sorted({str(array.dtype) for array in stored.values()})),
        renamed={theirs: ours for theirs, ours in names.items() if theirs != ours},
    )


def _read(path: Path) -> dict[str, np.ndarray]:
    if not path.is_file():
        raise ModelFileError(f"the weights file {path} does not exist: check the path")
    try:
        with np.load(io.BytesIO(path.read_bytes()), allow_pickle=False) as archive:
            return {name: archive[name] for name in archive.files}
    except (OSError, ValueError, EOFError, AttributeError, TypeError, zipfile.BadZipFile) as error:
        raise ModelFileError(
            f"{path.name} is no complete .npz archive of plain arrays: copy it again, or export it with numpy.savez"
        ) from error


def _check_array(index: int, variable: Any, key: str, array: np.ndarray, file: str) -> None:
    """Compare one array with the variable at its place."""
    expected = f"{index:03d}|{variable.name}"
    layer, _, tail = variable.name.rpartition("/")
    stored_index, _, name = key.partition("|")
    matches = name.rpartition("/")[2] == tail if layer == HEAD_NAME else name == variable.name
    if not stored_index.isdecimal() or int(stored_index) != index or not matches:
        raise ModelFileError(f"{file}: expected array {expected}, got {key}: the weights are of another network")
    if array.shape != tuple(variable.shape):
        raise ModelFileError(
            f"{file}: {key} has shape {array.shape}, the model needs {tuple(variable.shape)}: set the number of "
            "findings (and the width) that the weights were trained with"
        )
    if array.dtype not in (np.float16, np.float32) or not np.all(np.isfinite(array)):
        raise ModelFileError(f"{file}: {key} ({array.dtype}) must hold finite float16 or float32 numbers")
