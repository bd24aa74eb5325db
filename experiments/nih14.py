r"""The table of NIH's 14 findings that the originals are trained on: two collections at one size, patients apart.

Command:  python experiments/nih14.py --nih15k=nih15k --nih_mini=nih_mini --output_dir=nih14
          python experiments/nih14.py --nih15k=nih15k --nih_mini=nih_mini --output_dir=nih14_soft \
              --chexnet=nih_meta/chexnet_preds_22433.csv.gz
Time:     1 minute.
Result:   in --output_dir `images/` (128 px, PNG), `official.csv` and `held.csv` for `--dataset=csv`. Both have the same
          train and dev rows. Test is in `official.csv` the official test images of nih15k (153 patients, many
          follow-ups), in `held.csv` all images of 600 patients of its train_val list, drawn by seed before anything was
          trained. Images flagged as lateral, rotated or inverted are left out everywhere.

All images come at 128 px (64 px ones enlarged, 224 px ones reduced): otherwise sharpness tells the collection, and with
it the mix of labels. With --chexnet the training labels are the mean of NIH's label, mined from reports, and of the
probability that a CheXNet gave, where it had not trained on the image; dev and test keep NIH's labels. No patient has
images in two parts; official test patients of either collection are in no training or dev row.
"""

from __future__ import annotations

import csv
import gzip
import io
from collections.abc import Mapping
from pathlib import Path

import cv2
import numpy as np
from absl import app, flags

from cxr_compress.data.readers.base import NIH_FINDINGS
from cxr_compress.errors import DataError
from cxr_compress.files import make_folder, write_bytes, write_text

SIZE = 128
HELD_PATIENTS = 600
DEV_SHARE = 0.1
COLUMNS = ("path", *NIH_FINDINGS, "patient_id", "sex", "age", "view", "split", "source")

_NIH15K = flags.DEFINE_string("nih15k", None, "Folder of labels.csv, images64/ and images128/.", required=True)
_MINI = flags.DEFINE_string("nih_mini", None, "Folder of labels.csv and its images.", required=True)
_CHEXNET = flags.DEFINE_string("chexnet", None, "CSV of a CheXNet's probabilities (.gz or not): softens labels.")
_OUTPUT = flags.DEFINE_string("output_dir", None, "Where images and tables go.", required=True)

Row = dict[str, str]


def read_rows(folder: Path, source: str) -> list[Row]:
    """The rows of a collection that may be used, with the file of each."""
    rows = []
    with (folder / "labels.csv").open(newline="", encoding="utf-8") as table:
        for row in csv.DictReader(table):
            if not row["flag"]:
                rows.append({**row, "file": str(_file(folder, row)), "collection": source})
    return rows


def _file(folder: Path, row: Row) -> Path:
    """An image is a .jpg on disk whatever its name says; nih15k has a folder for each size."""
    inner = f"images{row['px']}" if "px" in row else "images"
    stem = Path(row["image"]).stem
    for name in (f"{stem}.jpg", row["image"]):
        if (folder / inner / name).is_file():
            return folder / inner / name
    raise DataError(f"expected {folder / inner / stem}.jpg, which labels.csv names; there is no such file")


def parts(nih15k: list[Row], mini: list[Row]) -> dict[str, list[Row]]:
    """train, dev, official, held; an image that both collections have comes from nih15k."""
    official = {row["patient_id"] for row in (*nih15k, *mini) if row["official_split"] == "test"}
    patients = sorted({row["patient_id"] for row in nih15k} - official, key=int)
    order = np.random.default_rng(14).permutation(len(patients))
    held = {patients[index] for index in order[:HELD_PATIENTS]}
    known = {row["image"] for row in nih15k}
    rest = [
        row
        for row in (*nih15k, *(row for row in mini if row["image"] not in known))
        if row["patient_id"] not in official | held
    ]
    of_rest = sorted({row["patient_id"] for row in rest}, key=int)
    order = np.random.default_rng(15).permutation(len(of_rest))
    dev = {of_rest[index] for index in order[: round(DEV_SHARE * len(of_rest))]}
    return {
        "train": [row for row in rest if row["patient_id"] not in dev],
        "dev": [row for row in rest if row["patient_id"] in dev],
        "official": [row for row in nih15k if row["official_split"] == "test"],
        "held": [row for row in nih15k if row["patient_id"] in held],
    }


def read_probabilities(path: Path) -> dict[str, list[float]]:
    """By image, the 14 probabilities."""
    with gzip.open(path, "rt") if path.suffix == ".gz" else path.open(encoding="utf-8") as table:
        return {
            row["Image Index"]: [float(row[f"prob_{finding}"]) for finding in NIH_FINDINGS]
            for row in csv.DictReader(table)
        }


def write_image(row: Row, folder: Path) -> str:
    """At the one size; returns its path relative to the tables."""
    image = cv2.imread(row["file"], cv2.IMREAD_GRAYSCALE)
    if image is None:
        raise DataError(f"cannot decode {row['file']}")
    if image.shape[0] != SIZE:
        image = cv2.resize(image, (SIZE, SIZE), interpolation=cv2.INTER_CUBIC)
    name = f"images/{Path(row['image']).stem}.png"
    write_bytes(folder / name, cv2.imencode(".png", image)[1].tobytes())
    return name


def line(row: Row, split: str, probabilities: Mapping[str, list[float]], folder: Path) -> dict[str, object]:
    """A row of the tables."""
    labels = [float(row[finding]) for finding in NIH_FINDINGS]
    if split == "train" and row["image"] in probabilities:
        labels = [(label + soft) / 2 for label, soft in zip(labels, probabilities[row["image"]], strict=True)]
    return {
        "path": write_image(row, folder),
        **{finding: f"{label:.4g}" for finding, label in zip(NIH_FINDINGS, labels, strict=True)},
        **{name: row[name] for name in ("patient_id", "sex", "age", "view")},
        "split": split,
        "source": row["collection"],
    }


def main(_: list[str]) -> None:
    """Write the images and both tables."""
    folder = make_folder(Path(_OUTPUT.value))
    make_folder(folder / "images")
    probabilities = read_probabilities(Path(_CHEXNET.value)) if _CHEXNET.value else {}
    of_part = parts(read_rows(Path(_NIH15K.value), "nih15k"), read_rows(Path(_MINI.value), "nih_mini"))
    lines = {
        part: [line(row, part if part in ("train", "dev") else "test", probabilities, folder) for row in rows]
        for part, rows in of_part.items()
    }
    for test in ("official", "held"):
        text = io.StringIO()
        writer = csv.DictWriter(text, COLUMNS, lineterminator="\n")
        writer.writeheader()
        writer.writerows([*lines["train"], *lines["dev"], *lines[test]])
        write_text(folder / f"{test}.csv", text.getvalue())
    for part, rows in of_part.items():
        softened = sum(row["image"] in probabilities for row in rows) if part == "train" else 0
        print(f"{part}: {len(rows)} images of {len({row['patient_id'] for row in rows})} patients, {softened} softened")


if __name__ == "__main__":
    app.run(main)
