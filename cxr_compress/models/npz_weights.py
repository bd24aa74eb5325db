"""Weights from a plain NumPy archive: one array per variable, named `index|variable name`, in the model's order."""

from __future__ import annotations

import io
import zipfile
from pathlib import Path
from typing import Any

import numpy as np

from cxr_compress.errors import ModelFileError
from cxr_compress.files import first_bytes, write_bytes
from cxr_compress.models.about import ABOUT_ENTRY, LARGEST_ABOUT, ModelAbout
from cxr_compress.models.architectures import HEAD_NAME
from cxr_compress.models.imports.base import ImportReport
from cxr_compress.models.imports.tensor_file import DAMAGE, LARGEST_FILE, read_npz

_NETWORK_ENTRY = "network.txt"
_DAMAGED = "is no complete .npz archive of plain arrays: copy it again, or export it with numpy.savez"
_EPOCH = (1980, 1, 1, 0, 0, 0)  # the earliest time that a ZIP entry can carry


def load_npz_weights(model: Any, path: str | Path) -> ImportReport:
    """Set every variable of `model` from an archive; either all arrays match or nothing is changed.

    Each array must have its place's index, its variable's name and shape, and finite numbers. Only the head may have
    been called differently, since training scripts name it as they like.

    Args:
        model: a `chexnet` of the size that the archive was made from.
        path: `.npz` of float16 or float32 arrays; nothing in it is unpickled.

    Returns:
        What was set.

    Raises:
        ModelFileError: the file is missing, damaged or made from another network.
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
        if not first_bytes(path, LARGEST_FILE).startswith(b"PK"):
            raise ModelFileError(f"{path.name} {_DAMAGED}")
        return read_npz(path.read_bytes(), besides=(ABOUT_ENTRY, _NETWORK_ENTRY))
    except (OSError, ModelFileError, *DAMAGE) as error:
        raise ModelFileError(f"{path.name} {_DAMAGED}") from error


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


def save_npz_weights(model: Any, path: str | Path, *, about: ModelAbout | None = None) -> None:
    """Write every variable of `model` as float16, in the form that `load_npz_weights` reads.

    Half the size of float32; each number is rounded by at most one part in 2,048, which moves an AUROC in its fourth
    digit at most. The bytes depend on weights, name and `about` alone.

    Args:
        model: its weights must be below 65,504, the largest float16.
        path: ends in `.npz`; appears at once.
        about: stored beside the weights, with the model's name, so that an import needs no other flag.

    Raises:
        ModelFileError: a weight is not a number or too large for float16.
        CompressionError: the disk is full or the folder cannot be written.
    """
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_STORED) as archive:
        for index, variable in enumerate(model.weights):
            with np.errstate(over="ignore"):
                half = variable.numpy().astype(np.float16)
            if not np.all(np.isfinite(half)):
                raise ModelFileError(f"{variable.name} holds numbers beyond float16 (65504): save the model as .keras")
            array = io.BytesIO()
            np.lib.format.write_array(array, half, allow_pickle=False)
            archive.writestr(zipfile.ZipInfo(f"{index:03d}|{variable.name}.npy", _EPOCH), array.getvalue())
        if about is not None:
            archive.writestr(zipfile.ZipInfo(ABOUT_ENTRY, _EPOCH), about.to_bytes())
            archive.writestr(zipfile.ZipInfo(_NETWORK_ENTRY, _EPOCH), model.name)
    write_bytes(Path(path), buffer.getvalue())


def read_npz_about(path: str | Path) -> tuple[str, ModelAbout] | None:
    """The network's name and what was stored with `save_npz_weights`; None for an archive of weights alone.

    Raises:
        ModelFileError: the file is missing or damaged.
    """
    path = Path(path)
    try:
        first_bytes(path, LARGEST_FILE)
        with zipfile.ZipFile(path) as archive:
            if ABOUT_ENTRY not in archive.namelist():
                return None
            sizes = [archive.getinfo(name).file_size for name in (ABOUT_ENTRY, _NETWORK_ENTRY)]
            if max(sizes) > LARGEST_ABOUT:
                raise ModelFileError(f"{path.name}: what it says about its model is too long: copy it again")
            content, network = archive.read(ABOUT_ENTRY), archive.read(_NETWORK_ENTRY).decode()
    except (OSError, KeyError, ValueError, zipfile.BadZipFile) as error:
        raise ModelFileError(f"{path.name} {_DAMAGED}") from error
    return network, ModelAbout.from_bytes(content, path.name)
