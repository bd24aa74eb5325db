"""Opens one file that ``cxr_data cache`` made, without the data set it was made of."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from cxr_compress.data.cache_plan import FORMAT, PREPROCESS_VERSION, Manifest, pixel_fields
from cxr_compress.data.decoding import film_shape
from cxr_compress.device.preprocess import PreprocessSpec
from cxr_compress.errors import DataError

_TEST = "test"


def open_cache_file(path: str | Path, spec: PreprocessSpec) -> NDArray[np.uint8]:
    """The decoded films of a cache, as a read-only memory map.

    Its manifest has to lie beside it, as ``cxr_data cache`` leaves it. Whether the films have changed since cannot be
    seen without them; where the data set is at hand, ``open_cache`` looks.

    Args:
        path: the .npy file.
        spec: size and colour that the films have to have.

    Returns:
        uint8 (films, height, width), or (films, height, width, 3) where ``spec.color`` is "rgb".

    Raises:
        DataError: no cache, an unfinished or damaged one, of other films than ``spec`` asks for, or of the test part,
            which nothing but a score may be taken from.
    """
    path = Path(path)
    if path.name.startswith(f"{_TEST}_"):
        raise DataError(f"{path.name} is a cache of the test part, which is for scoring alone: give that of train")
    manifest, films = _read(path)
    if (manifest.format, manifest.preprocess_version) != (FORMAT, PREPROCESS_VERSION):
        raise DataError(f"{path.name} was made by another version of cxr_data: build it again with cxr_data cache")
    if manifest.preprocessing != pixel_fields(spec) or films.shape[1:] != film_shape(spec):
        size, color = (films.shape[1:3], manifest.preprocessing.get("color"))
        raise DataError(
            f"expected films of {spec.height} x {spec.width} ({spec.color}) as the model takes them, {path.name} holds "
            f"{' x '.join(map(str, size))} ({color}): build one with cxr_data cache --size={spec.height}"
        )
    return films


def _read(path: Path) -> tuple[Manifest, NDArray[np.uint8]]:
    """Manifest and films, of which the one describes the other."""
    try:
        manifest = Manifest.from_json(path.with_suffix(".json").read_text(encoding="utf-8"))
    except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
        raise DataError(
            f"{path.name} has no manifest of cxr_data cache beside it ({path.with_suffix('.json').name}): give a cache "
            "that is finished, with both of its files"
        ) from error
    try:
        films: NDArray[np.uint8] = np.load(path, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise DataError(f"{path.name} cannot be read as a cache ({error}): build it again with cxr_data") from error
    if films.dtype != np.uint8 or films.shape != manifest.shape:
        raise DataError(f"{path.name} does not hold what its manifest says: build it again with cxr_data cache")
    return manifest, films
