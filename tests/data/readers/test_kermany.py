"""The Kermany reader: patients, splits, and what it refuses."""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
import pytest

from cxr_compress.data import load_dataset, load_kermany
from cxr_compress.data.readers.kermany import patient_of
from cxr_compress.errors import DataError
from tests.data.files import draw, make_kermany


@pytest.mark.parametrize("inside", ["", "images", "chest_xray"])
def test_load_kermany_root_or_one_level_down_gives_the_same_splits(tmp_path: Path, inside: str) -> None:
    make_kermany(tmp_path / inside)
    dataset = load_dataset("kermany", tmp_path, dev_fraction=0.25)
    assert dataset.findings == ("Pneumonia",)
    assert not dataset.synthetic
    assert "CC BY 4.0" in dataset.attribution
    # 12 patients of each of the four series: IM, NORMAL2-IM, bacteria, virus (the last with two images each).
    assert len(set(dataset.train.patients) | set(dataset.dev.patients)) == 4 * 12
    assert len(set(dataset.dev.patients)) == 12
    assert len(dataset.train) + len(dataset.dev) == len(dataset.test) == 5 * 12
    for split in dataset.splits:
        expected = [float("PNEUMONIA" in path.parts) for path in split.paths]
        np.testing.assert_array_equal(split.labels[:, 0], expected)


def test_load_kermany_official_val_is_in_no_split(tmp_path: Path) -> None:
    dataset = load_kermany(make_kermany(tmp_path))
    assert not any("val" in path.relative_to(tmp_path).parts for split in dataset.splits for path in split.paths)


def test_load_kermany_leftovers_of_other_systems_are_passed_over(tmp_path: Path) -> None:
    expected = load_kermany(make_kermany(tmp_path))
    for name in (".DS_Store", "._IM-0001-0001.jpeg", "Thumbs.db", "notes.txt"):
        (tmp_path / "train" / "NORMAL" / name).write_bytes(b"x")
    draw(tmp_path / "__MACOSX" / "train" / "NORMAL" / "IM-9999-0001.jpeg")
    (tmp_path / "train" / "NORMAL" / "__MACOSX").mkdir()
    assert load_kermany(tmp_path).train.paths == expected.train.paths


def test_load_kermany_what_is_not_read_is_noted_by_number_and_kind(tmp_path: Path) -> None:
    make_kermany(tmp_path)
    assert len(load_kermany(tmp_path).notes) == 1
    for name in ("Thumbs.db", "Doe_Jane.JaneDoe1960", "sub/person1_virus_9.jpeg"):
        (tmp_path / "train" / "NORMAL" / name).parent.mkdir(exist_ok=True)
        (tmp_path / "train" / "NORMAL" / name).write_bytes(b"x")
    (tmp_path / "test" / "COVID").mkdir()
    notes = load_kermany(tmp_path).notes[1:]
    assert notes == (
        "train/NORMAL: 3 not read, being no image: 1 .db, 1 of another suffix, 1 sub-folders",
        "test/: 1 not read beside NORMAL and PNEUMONIA",
    )
    assert "Jane" not in " ".join(notes)


def test_load_kermany_class_folders_in_any_case_and_two_of_one_class_are_refused(tmp_path: Path) -> None:
    expected = load_kermany(make_kermany(tmp_path))
    (tmp_path / "train" / "NORMAL").rename(tmp_path / "train" / "Normal")
    assert load_kermany(tmp_path).train.patients == expected.train.patients
    (tmp_path / "train" / "normal").mkdir()
    with pytest.raises(DataError, match=r"expected one folder NORMAL in .*train, found Normal and normal; join them"):
        load_kermany(tmp_path)


def test_load_kermany_sources_are_the_subtypes(tmp_path: Path) -> None:
    for split in load_kermany(make_kermany(tmp_path)).splits:
        for path, source in zip(split.paths, split.sources, strict=True):
            assert source == ("normal" if "IM-" in path.name else path.name.split("_")[1])


def test_load_kermany_same_seed_gives_the_same_dev_and_another_seed_another(tmp_path: Path) -> None:
    make_kermany(tmp_path)
    assert load_kermany(tmp_path, seed=1).dev.paths == load_kermany(tmp_path, seed=1).dev.paths
    assert load_kermany(tmp_path, seed=1).dev.paths != load_kermany(tmp_path, seed=2).dev.paths


@pytest.mark.parametrize(
    ("name", "patient"),
    [
        ("person1000_bacteria_2931.jpeg", "person1000_bacteria"),
        ("person1000_virus_1681.jpeg", "person1000_virus"),
        ("person447_virus_921_1.jpeg", "person447_virus"),
        ("IM-0011-0001-0002.jpeg", "IM-0011"),
        ("NORMAL2-IM-0173-0001-0001.jpeg", "NORMAL2-IM-0173"),
    ],
)
def test_patient_of_each_pattern_of_names(name: str, patient: str) -> None:
    assert patient_of(name) == patient


def test_patient_of_unknown_name_is_refused() -> None:
    with pytest.raises(DataError, match=r"expected a patient in the file name .* got 'scan7.jpeg'"):
        patient_of("scan7.jpeg")


def test_load_kermany_patient_in_train_and_test_is_refused_with_counts_and_key(tmp_path: Path) -> None:
    make_kermany(tmp_path)
    draw(tmp_path / "test" / "PNEUMONIA" / "person3_virus_999.jpeg")
    draw(tmp_path / "test" / "PNEUMONIA" / "person4_virus_999.jpeg")
    with pytest.raises(
        DataError, match=r"patient\(s\) with \d+ images are in both \w+ and test \(the key is personN_bact"
    ):
        load_kermany(tmp_path)


def test_load_kermany_same_number_as_bacteria_and_virus_is_no_leak(tmp_path: Path) -> None:
    make_kermany(tmp_path)
    draw(tmp_path / "test" / "PNEUMONIA" / "person555_virus_1.jpeg")
    draw(tmp_path / "train" / "PNEUMONIA" / "person555_bacteria_1.jpeg")
    load_kermany(tmp_path)


def test_load_kermany_missing_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"expected a folder, .*nowhere does not exist"):
        load_kermany(tmp_path / "nowhere")


def test_load_kermany_empty_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"expected train/ and test/ in .*found neither; unpack"):
        load_kermany(tmp_path)


def test_load_kermany_class_without_images_is_refused(tmp_path: Path) -> None:
    make_kermany(tmp_path)
    for path in (tmp_path / "test" / "PNEUMONIA").iterdir():
        path.unlink()
    with pytest.raises(DataError, match=r"expected JPEG or PNG images in .*PNEUMONIA, found none"):
        load_kermany(tmp_path)


def test_load_kermany_real_set_agrees_with_its_label_file(cxr_data: Path) -> None:
    root = cxr_data / "kermany224"
    with (root / "labels.csv").open() as file:
        rows = {row["path"]: row for row in csv.DictReader(file)}
    assert len(rows) == 5856
    assert all(patient_of(row["file"]) == row["patient_id"] for row in rows.values())
    dataset = load_kermany(root)
    assert (len(dataset.train) + len(dataset.dev), len(dataset.test)) == (1341 + 3875, 234 + 390)
    for split, official in ((dataset.train, "train"), (dataset.dev, "train"), (dataset.test, "test")):
        for path, label, patient in zip(split.paths, split.labels[:, 0], split.patients, strict=True):
            row = rows[path.relative_to(root).as_posix()]
            assert (row["split"], row["label"] == "PNEUMONIA", row["patient_id"]) == (official, label == 1, patient)
    # Ten per cent of two strata, each within one patient.
    trained = set(dataset.train.patients) | set(dataset.dev.patients)
    assert abs(len(set(dataset.dev.patients)) - 0.1 * len(trained)) <= 2


def test_load_kermany_subtypes_are_three_classes_that_exclude_one_another(tmp_path: Path) -> None:
    make_kermany(tmp_path)
    dataset = load_dataset("kermany", tmp_path, options={"subtypes": "true"})
    assert (dataset.findings, dataset.exclusive) == (("normal", "bacteria", "virus"), True)
    assert not load_dataset("kermany", tmp_path).exclusive
    for split in dataset.splits:
        assert (split.labels.sum(axis=1) == 1).all()
        named = [dataset.findings[column] for column in split.labels.argmax(axis=1)]
        assert tuple(named) == split.sources
        assert ["NORMAL" in path.parts for path in split.paths] == [name == "normal" for name in named]
