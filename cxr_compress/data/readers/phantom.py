"""Writes and reads a set of drawn chest images, for everyone who has no X-rays at hand: always called synthetic.

What a model reaches on it shows that the machinery works. It says nothing about patients.
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from cxr_compress.data.dataset import Dataset, Split
from cxr_compress.data.readers.base import Request, load_dataset, register_reader
from cxr_compress.data.readers.phantom_image import PHANTOM_FINDINGS, render_image
from cxr_compress.data.splits import carve_dev
from cxr_compress.errors import DataError
from cxr_compress.files import make_folder, write_bytes, write_text

ATTRIBUTION = "Procedural phantom images drawn by cxr_compress: synthetic, made from no image and no patient"

_GENERATOR = 1  # raised whenever the same parameters give other images, so that an old set is not taken for a new one
_PARAMETERS, _STARTED, _LABELS = "phantom.json", "phantom_unfinished.json", "labels.csv"
_SHARES = (0.40, 0.30, 0.30, 0.25, 0.25)  # of the patients who have each finding
_SHOWS = 0.85  # chance that an image of such a patient shows it; his first image always does
_MIN_IMAGES, _MIN_SIZE = 8, 32
_WRITERS, _WAVE = 4, 32  # threads; images between two words of progress, and at most lost by Ctrl-C


@dataclass(frozen=True)
class _Image:
    """One row of labels.csv."""

    split: str
    patient: int  # numbered through the whole set
    number: int  # of this patient's images
    findings: tuple[str, ...]

    @property
    def path(self) -> str:
        return f"images/phantom{self.patient:05d}_{self.number:02d}.png"


def write_phantom(
    data_dir: str | Path,
    *,
    n_train: int = 2000,
    n_test: int = 500,
    size: int = 128,
    seed: int = 0,
    progress: Callable[[int, int], None] | None = None,
) -> None:
    """Draws a set into a folder: gray 8-bit PNGs, ``labels.csv``, and last the parameters it was made with.

    An interrupted call is taken up where it stopped by the same call; a finished set is left alone. The same
    parameters give the same images, in whatever number of calls.

    Args:
        data_dir: A new or empty folder, or one that this function wrote.
        n_train: Images to train on (dev is carved out of them on loading); patients have 1 to 3 images.
        n_test: Images of other patients to test on.
        size: Pixels per edge; drawing takes about 6 ms an image at 128, four times that at 256.
        seed: Another seed draws other patients.
        progress: Called as (images done, images in all).

    Raises:
        DataError: Parameters out of range, a folder with other content, or a set made with other parameters.
        CompressionError: The disk is full or the folder cannot be written.
    """
    folder = Path(data_dir)
    parameters = _parameters(n_train, n_test, size, seed)
    if _is_finished(folder, parameters):
        return
    make_folder(folder / "images")
    write_text(folder / _STARTED, _as_json(parameters))
    images = [*_plan("train", n_train, 0, seed), *_plan("test", n_test, n_train, seed)]

    def draw(drawn: _Image) -> None:
        path = folder / drawn.path
        if not path.exists():
            image = render_image(seed, drawn.patient, drawn.number, drawn.findings, size=size)
            write_bytes(path, cv2.imencode(".png", image)[1].tobytes())

    with ThreadPoolExecutor(_WRITERS) as pool:  # the disk's syncs take as long as the drawing: let them overlap
        for start in range(0, len(images), _WAVE):
            wave = images[start : start + _WAVE]
            for _ in pool.map(draw, wave):
                pass
            if progress is not None:
                progress(start + len(wave), len(images))
    write_text(folder / _LABELS, _labels_csv(images))
    write_text(folder / _PARAMETERS, _as_json(parameters))
    (folder / _STARTED).unlink()


def load_phantom(data_dir: str | Path, *, dev_fraction: float = 0.1, seed: int = 0) -> Dataset:
    """The set as `load_dataset("phantom", ...)` gives it; the seed is that of dev, images have a seed of their own."""
    return load_dataset("phantom", data_dir, dev_fraction=dev_fraction, seed=seed)


@register_reader("phantom", help="drawn chest images of write_phantom, for those who have no X-rays: synthetic")
def read_phantom(request: Request) -> Dataset:
    """The set that `write_phantom` left in a folder.

    Raises:
        DataError: no finished set there, or a file is missing.
    """
    folder = request.data_dir
    if not (folder / _PARAMETERS).is_file():
        raise DataError(
            f"phantom: expected {_PARAMETERS} in {folder}, found none: no phantom set was finished there; "
            "write one with cxr_compress.data.write_phantom"
        )
    splits = _read_labels(folder)
    absent = sum(not path.is_file() for split in splits.values() for path in split.paths)
    if absent:
        raise DataError(f"phantom: {absent} images of {_LABELS} are missing in {folder}; write the set again elsewhere")
    train, dev = carve_dev(splits["train"], fraction=request.dev_fraction, seed=request.seed)
    return Dataset(
        "phantom",
        PHANTOM_FINDINGS,
        train,
        dev,
        splits["test"],
        ATTRIBUTION,
        synthetic=True,
        patient_key="the column 'patient_id' of labels.csv",
    )


def _parameters(n_train: int, n_test: int, size: int, seed: int) -> dict[str, Any]:
    """All that decides the images, checked."""
    limits = {
        "n_train": (n_train, _MIN_IMAGES),
        "n_test": (n_test, _MIN_IMAGES),
        "size": (size, _MIN_SIZE),
        "seed": (seed, 0),
    }
    for name, (value, least) in limits.items():
        if value < least:
            raise DataError(f"phantom: expected {name} of at least {least}, got {value}")
    return {
        "what": ATTRIBUTION,
        "generator": _GENERATOR,
        "n_train": n_train,
        "n_test": n_test,
        "size": size,
        "seed": seed,
        "findings": list(PHANTOM_FINDINGS),
    }


def _is_finished(folder: Path, parameters: dict[str, Any]) -> bool:
    """True if this very set is complete; False if it may be begun or continued."""
    for name in (_PARAMETERS, _STARTED):
        if (folder / name).is_file():
            _check_same(folder / name, parameters)
            return name == _PARAMETERS
    if folder.exists() and not (folder.is_dir() and not any(folder.iterdir())):
        raise DataError(f"phantom: expected {folder} to be new, empty or a phantom set, it holds something else")
    return False


def _check_same(path: Path, parameters: dict[str, Any]) -> None:
    """A folder belongs to one set of parameters."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise DataError(
            f"phantom: {path.name} in {path.parent} is damaged; delete the folder or take another"
        ) from error
    differing = [key for key in parameters if not isinstance(found, dict) or found.get(key) != parameters[key]]
    if differing:
        pairs = ", ".join(f"{key} {found.get(key)!r} instead of {parameters[key]!r}" for key in differing)
        raise DataError(f"phantom: {path.parent} holds a set with {pairs}; delete it or choose another folder")


def _plan(split: str, images: int, first_patient: int, seed: int) -> list[_Image]:
    """Who has which finding on which image; exactly ``_SHARES`` of the patients have each."""
    rng = np.random.default_rng((seed, first_patient, images))
    counts = _images_per_patient(images, rng)
    patients = len(counts)
    sick = np.stack([rng.permutation(patients) < max(1, round(share * patients)) for share in _SHARES], axis=1)
    planned = []
    for patient, count in enumerate(counts):
        hidden = rng.uniform(size=(3, len(PHANTOM_FINDINGS))) > _SHOWS
        hidden[0] = False
        for drawn in range(count):
            shown = sick[patient] & ~hidden[drawn]
            findings = tuple(name for name, there in zip(PHANTOM_FINDINGS, shown, strict=True) if there)
            planned.append(_Image(split, first_patient + patient, drawn, findings))
    return planned


def _images_per_patient(images: int, rng: np.random.Generator) -> list[int]:
    """One to three images each until they are enough; the last patient takes what is left."""
    ends = np.minimum(np.cumsum(rng.integers(1, 4, images)), images)
    counts: NDArray[np.int64] = np.diff(ends, prepend=0)
    return [int(count) for count in counts if count]


def _labels_csv(images: list[_Image]) -> str:
    """The table that ``load_phantom`` reads."""
    text = io.StringIO()
    rows = csv.writer(text, lineterminator="\n")
    rows.writerow(["path", "split", "patient_id", *PHANTOM_FINDINGS])
    for drawn in images:
        labels = [int(name in drawn.findings) for name in PHANTOM_FINDINGS]
        rows.writerow([drawn.path, drawn.split, f"phantom{drawn.patient:05d}", *labels])
    return text.getvalue()


def _read_labels(folder: Path) -> dict[str, Split]:
    """Train and test as labels.csv lists them."""
    path = folder / _LABELS
    try:
        rows = list(csv.DictReader(io.StringIO(path.read_text(encoding="utf-8"))))
        return {
            name: _make_split(name, [row for row in rows if row["split"] == name], folder) for name in ("train", "test")
        }
    except (OSError, UnicodeDecodeError, csv.Error, KeyError, TypeError, ValueError) as error:
        raise DataError(
            f"phantom: {_LABELS} in {folder} is missing or damaged ({error!r}); write the set again"
        ) from error


def _make_split(name: str, rows: list[dict[str, str]], folder: Path) -> Split:
    """The rows of one split."""
    labels = np.array([[float(row[finding]) for finding in PHANTOM_FINDINGS] for row in rows], np.float32)
    return Split(
        name,
        tuple(folder / row["path"] for row in rows),
        labels.reshape(-1, len(PHANTOM_FINDINGS)),
        tuple(row["patient_id"] for row in rows),
    )


def _as_json(parameters: dict[str, Any]) -> str:
    return json.dumps(parameters, indent=1) + "\n"
