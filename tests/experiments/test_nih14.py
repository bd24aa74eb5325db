"""The table of the 14 findings: one size, patients apart, flagged images out, labels softened in training alone."""

from __future__ import annotations

import csv
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest

from cxr_compress.data.readers.base import NIH_FINDINGS
from tests.conftest import REPOSITORY

PATIENTS = 700
HEADER = ["image", "patient_id", "age", "sex", "view", "official_split", "source", "labels", *NIH_FINDINGS]


def write_collection(
    folder: Path, sizes: dict[str, int], rows: list[dict[str, object]], extra: tuple[str, ...]
) -> None:
    """A collection in the layout of the real ones; all images of a size are one picture."""
    for name in sizes:
        (folder / name).mkdir(parents=True)
    with (folder / "labels.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, [*HEADER, "has_chexnet_pred", "flag", *extra])
        writer.writeheader()
        for row in rows:
            inner = f"images{row['px']}" if "px" in row else "images"
            picture = np.random.default_rng(1).integers(0, 255, (sizes[inner],) * 2, np.uint8)
            cv2.imwrite(str(folder / inner / f"{str(row['image'])[:-4]}.jpg"), picture)
            findings = {finding: int(finding == row["labels"]) for finding in NIH_FINDINGS}
            writer.writerow(
                {"age": 50, "sex": "F", "view": "PA", "source": "x", "has_chexnet_pred": 0, **findings, **row}
            )


@pytest.fixture(scope="module")
def tables(tmp_path_factory) -> dict[str, list[dict[str, str]]]:
    """Both tables that the script writes of two small collections."""
    folder = tmp_path_factory.mktemp("nih14")
    large = [
        {
            **{"image": f"{number:08d}_00{visit}.png", "patient_id": number, "labels": "Mass" if visit else ""},
            **{"official_split": "test" if number % 20 == 0 else "train_val", "px": 64 if number < 100 else 128},
            "flag": "rotated" if number % 50 == 7 else "",
        }
        for number in range(1, PATIENTS + 1)
        for visit in range(2 if number % 3 == 0 else 1)
    ]
    # The second collection repeats some images, and has patients of its own, one of them of the official test.
    small = [
        {"image": f"{number:08d}_000.png", "patient_id": number, "labels": "Edema", "official_split": split, "flag": ""}
        for number, split in [(3, "train_val"), (900, "train_val"), (901, "test"), (901, "test")]
    ]
    write_collection(folder / "a", {"images64": 64, "images128": 128}, large, ("px",))
    write_collection(folder / "b", {"images": 224}, small, ())
    header = "Image Index," + ",".join(f"prob_{finding}" for finding in NIH_FINDINGS)
    line = ",".join(["0.5"] * len(NIH_FINDINGS))
    (folder / "chexnet.csv").write_text("\n".join([header, *(f"{row['image']},{line}" for row in large)]) + "\n")
    flags = [f"--nih15k={folder / 'a'}", f"--nih_mini={folder / 'b'}", f"--output_dir={folder / 'out'}"]
    script = REPOSITORY / "experiments" / "nih14.py"
    command = [sys.executable, str(script), *flags, f"--chexnet={folder / 'chexnet.csv'}"]
    done = subprocess.run(command, check=False, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    assert {cv2.imread(str(path)).shape for path in (folder / "out" / "images").iterdir()} == {(128, 128, 3)}
    result = {}
    for name in ("official", "held"):
        with (folder / "out" / f"{name}.csv").open() as file:
            result[name] = list(csv.DictReader(file))
    return result


def patients(rows: list[dict[str, str]], *splits: str) -> set[str]:
    return {row["patient_id"] for row in rows if row["split"] in splits}


def test_no_patient_is_in_two_parts_and_no_official_test_patient_is_trained_on(tables):
    official, held = tables["official"], tables["held"]
    trained = patients(official, "train", "dev")
    assert not patients(official, "train") & patients(official, "dev")
    assert not trained & patients(official, "test")
    assert not trained & patients(held, "test")
    assert not patients(official, "test") & patients(held, "test")
    assert "901" not in trained
    assert {int(patient) % 20 for patient in patients(official, "test")} == {0}
    assert len(patients(held, "test")) == 600


def test_both_tables_train_on_the_same_rows_and_flagged_images_are_nowhere(tables):
    rows = {name: [row for row in table if row["split"] != "test"] for name, table in tables.items()}
    assert rows["official"] == rows["held"]
    assert rows["official"]
    everyone = set().union(*(patients(table, "train", "dev", "test") for table in tables.values()))
    assert not any(int(patient) % 50 == 7 for patient in everyone)


def test_labels_are_softened_in_training_alone_and_a_repeated_image_counts_once(tables):
    for row in (row for table in tables.values() for row in table):
        values = {float(row[finding]) for finding in NIH_FINDINGS}
        softened = row["split"] == "train" and row["source"] == "nih15k"
        assert values <= ({0.25, 0.75} if softened else {0.0, 1.0})
    paths = [row["path"] for row in tables["official"]]
    assert len(paths) == len(set(paths))
