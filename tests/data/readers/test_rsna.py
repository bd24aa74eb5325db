"""The RSNA reader: a row per box, DICOM paths, a seeded test split, patients only by the mapping."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from cxr_compress.data import load_dataset
from cxr_compress.data.readers.base import Missing, read_dataset
from cxr_compress.errors import DataError

KINDS = ("Normal", "No Lung Opacity / Not Normal", "Lung Opacity")


def image_name(picture: int) -> str:
    return f"{picture:08x}-0000-4000-8000-000000000000"


def make_rsna(root: Path, *, pictures: int = 60, details: bool = True) -> Path:
    """Every third image is positive, with two boxes. The images are only listed by the reader, so they hold nothing."""
    images = root / "stage_2_train_images"
    images.mkdir(parents=True)
    labels, kinds = ["patientId,x,y,width,height,Target"], ["patientId,class"]
    for picture in range(pictures):
        positive = picture % 3 == 2
        boxes = ["264.0,152.0,213.0,379.0,1", "562.0,152.0,256.0,453.0,1"] if positive else [",,,,0"]
        labels += [f"{image_name(picture)},{box}" for box in boxes]
        kinds += [f"{image_name(picture)},{KINDS[picture % 3]}" for _ in boxes]
        (images / f"{image_name(picture)}.dcm").write_bytes(b"")
    (root / "stage_2_train_labels.csv").write_text("\n".join(labels) + "\n")
    if details:
        (root / "stage_2_detailed_class_info.csv").write_text("\n".join(kinds) + "\n")
    return root


def test_load_dataset_rsna_rows_per_box_become_one_image(tmp_path: Path) -> None:
    dataset = load_dataset("rsna", make_rsna(tmp_path))
    assert dataset.findings == ("Pneumonia",)
    assert sum(map(len, dataset.splits)) == 60
    for split in dataset.splits:
        for path, label, kind in zip(split.paths, split.labels[:, 0], split.sources, strict=True):
            picture = int(path.stem[:8], 16)
            assert path == tmp_path / "stage_2_train_images" / f"{image_name(picture)}.dcm"
            assert (label, kind) == (float(picture % 3 == 2), KINDS[picture % 3])


def test_load_dataset_rsna_test_split_is_stratified_seeded_and_of_the_size_asked_for(tmp_path: Path) -> None:
    make_rsna(tmp_path, details=False)
    dataset = load_dataset("rsna", tmp_path, options={"test_fraction": "0.3"})
    # 20 patients with, 40 without: 30 % of each for test, then 10 % of the 14 and of the 28 for dev.
    assert [len(split) for split in dataset.splits] == [60 - 18 - 4, 1 + 3, 6 + 12]
    assert [int(split.labels.sum()) for split in dataset.splits] == [13, 1, 6]
    assert dataset.train.sources is None
    again = load_dataset("rsna", tmp_path, options={"test_fraction": 0.3})
    other = load_dataset("rsna", tmp_path, seed=1, options={"test_fraction": 0.3})
    assert dataset.test.paths == again.test.paths != other.test.paths


def test_load_dataset_rsna_mapping_keeps_the_images_of_an_nih_patient_together(tmp_path: Path) -> None:
    make_rsna(tmp_path)
    entries = [
        {"subset_img_id": image_name(picture), "img_id": f"{picture // 4:08d}_{picture % 4:03d}.png", "orig_labels": []}
        for picture in range(60)
    ]
    mapping = tmp_path / "pneumonia-challenge-dataset-mappings_2018.json"
    mapping.write_text(json.dumps(entries))
    dataset = load_dataset("rsna", tmp_path, options={"mapping": str(mapping)})
    assert len({patient for split in dataset.splits for patient in split.patients}) == 15
    assert all(len(split) == 4 * len(set(split.patients)) for split in dataset.splits)
    assert dataset.patient_key == "the NIH patient that the option mapping gives"
    without = load_dataset("rsna", tmp_path)
    assert any("patientId numbers images, not people" in note for note in without.notes)
    mapping.write_text(json.dumps(entries[1:]))
    with pytest.raises(DataError, match="lacks 1 of 60 images"):
        load_dataset("rsna", tmp_path, options={"mapping": str(mapping)})
    mapping.write_text('{"a": 1}')
    with pytest.raises(DataError, match="expected a JSON list of objects with img_id and subset_img_id"):
        load_dataset("rsna", tmp_path, options={"mapping": str(mapping)})


def test_load_dataset_rsna_missing_images_are_counted_dropped_or_kept(tmp_path: Path) -> None:
    images = make_rsna(tmp_path) / "stage_2_train_images"
    (images / f"{image_name(0)}.dcm").unlink()
    with pytest.raises(DataError, match="rsna: 1 of 60 labeled images are missing"):
        load_dataset("rsna", tmp_path)
    assert sum(map(len, load_dataset("rsna", tmp_path, allow_missing=True).splits)) == 59
    assert sum(map(len, read_dataset("rsna", tmp_path, missing=Missing.KEEP).splits)) == 60
    (images / f"{image_name(0)}.png").write_bytes(b"")  # converted images keep their names
    assert sum(map(len, load_dataset("rsna", tmp_path).splits)) == 60


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("Target", "Truth", r"expected the column\(s\) Target in stage_2_train_labels.csv"),
        (
            f"{image_name(1)},,,,,0",
            f"{image_name(1)},,,,,2",
            "line 3 of stage_2_train_labels.csv has patientId .* Target '2'",
        ),
        ("562.0,152.0,256.0,453.0,1", ",,,,0", "line 5 of stage_2_train_labels.csv says Target 0 of an image that an"),
    ],
)
def test_load_dataset_rsna_damaged_table_is_one_clear_line(tmp_path: Path, old, new, message) -> None:
    table = make_rsna(tmp_path) / "stage_2_train_labels.csv"
    table.write_text(table.read_text().replace(old, new))
    with pytest.raises(DataError, match=message):
        load_dataset("rsna", tmp_path)
