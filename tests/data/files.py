"""Small data sets on disk, with drawn images, for the readers to read."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import cv2
import numpy as np

NIH_HEADER = (
    "Image Index,Finding Labels,Follow-up #,Patient ID,Patient Age,Patient Gender,View Position,"
    "OriginalImage[Width,Height],OriginalImagePixelSpacing[x,y],"
)


def draw(path: Path, *, seed: int = 0, size: int = 24, depth: int = 8) -> None:
    """A gray image file; 16-bit PNGs use their whole range."""
    path.parent.mkdir(parents=True, exist_ok=True)
    image = np.random.default_rng(seed).integers(0, 2**depth, (size, size))
    path.write_bytes(cv2.imencode(path.suffix, image.astype(f"uint{depth}"))[1].tobytes())


def make_kermany(root: Path, *, patients: int = 12) -> Path:
    """train/, val/ and test/ with NORMAL and PNEUMONIA; some patients have two images."""
    for split, first in (("train", 0), ("test", 100), ("val", 200)):
        for number in range(first, first + patients):
            draw(root / split / "NORMAL" / f"IM-{number:04d}-0001.jpeg")
            draw(root / split / "NORMAL" / f"NORMAL2-IM-{number:04d}-0001-0002.jpeg")
            draw(root / split / "PNEUMONIA" / f"person{number}_bacteria_{2 * number}.jpeg")
            draw(root / split / "PNEUMONIA" / f"person{number}_virus_{2 * number}.jpeg")
            draw(root / split / "PNEUMONIA" / f"person{number}_virus_{2 * number + 1}.jpeg")
    return root


def write_nih(
    root: Path,
    pictures: Mapping[str, tuple[str, str]],
    *,
    train_val: Sequence[str],
    test: Sequence[str],
    images: bool = True,
) -> Path:
    """``images``: image name -> (patient, labels), in the layout and header of the first edition."""
    root.mkdir(parents=True, exist_ok=True)
    lines = [
        f"{name},{labels},0,{patient},058Y,M,PA,2682,2749,0.143,0.143," for name, (patient, labels) in pictures.items()
    ]
    (root / "Data_Entry_2017.csv").write_text("\n".join([NIH_HEADER, *lines]) + "\n")
    (root / "train_val_list.txt").write_text("\n".join(train_val))
    (root / "test_list.txt").write_text("\n".join(test))
    for number, name in enumerate(pictures if images else ()):
        draw(root / f"images_{1 + number % 2:03d}" / "images" / name)
    return root
