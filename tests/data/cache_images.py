"""Splits of drawn images for the tests of the cache."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from cxr_compress.data.splits import Split
from cxr_compress.device.preprocess import PreprocessSpec
from tests.data.files import draw

SPEC = PreprocessSpec(16, 16)
IMAGE = 16 * 16


def images_of(folder: Path, count: int = 30, *, name: str = "train") -> Split:
    """A split of drawn images in two sub-folders; one patient and label each."""
    paths = [folder / f"part{i % 2}" / f"secret_patient_{i:03d}.png" for i in range(count)]
    for seed, path in enumerate(paths):
        if not path.exists():
            draw(path, seed=seed, size=24)
    return split_of(sorted(paths), name)


def split_of(paths: list[Path], name: str = "train") -> Split:
    return Split(name, tuple(paths), np.zeros((len(paths), 1), np.float32), tuple(path.stem for path in paths))


def replace_image(path: Path, seed: int) -> None:
    """Another image, certainly of another size."""
    draw(path, seed=seed, size=28)


def names_in(folder: Path) -> list[str]:
    return sorted(path.suffix for path in folder.iterdir())
