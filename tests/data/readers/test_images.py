"""Images without labels: what is read, what goes into which split, and one clear line for what cannot be used."""

from __future__ import annotations

import math
import shutil
from pathlib import Path

import numpy as np
import pytest

from cxr_compress.data import Dataset, decode_split, load_dataset
from cxr_compress.data.readers.images import FEWEST
from cxr_compress.device.preprocess import PreprocessSpec
from cxr_compress.errors import DataError
from tests.data.files import draw


@pytest.fixture
def folder(tmp_path) -> Path:
    """Thirty images of two kinds and sizes, some of them in a sub-folder."""
    for number in range(30):
        name = f"{number}.png" if number % 2 else f"deep/er/{number}.jpg"
        draw(tmp_path / "images" / name, seed=number, size=24 + number)
    (tmp_path / "images" / "notes.txt").write_text("not an image")
    return tmp_path / "images"


def write_table(folder: Path, header: str, row: str = "", *, images: int = 30) -> Path:
    """A table of drawn images; {n} is the number of the row."""
    lines = [header]
    for number in range(images):
        draw(folder / f"{number}.png", seed=number)
        lines.append(f"{number}.png" + row.replace("{n}", str(number)))
    path = folder / "table.csv"
    path.write_text("\n".join(lines) + "\n")
    return path


def patients_of(dataset: Dataset) -> list[set[str]]:
    return [set(split.patients) for split in dataset.splits]


def test_images_of_a_folder_are_found_whatever_their_size_and_kind_and_none_is_in_two_splits(folder):
    dataset = load_dataset("images", folder)
    assert [len(split) for split in dataset.splits] == [24, 3, 3]
    assert not dataset.labeled
    assert dataset.findings == ()
    assert len(set().union(*patients_of(dataset))) == 30
    notes = " ".join(dataset.notes)
    for said in ("30 images: 15 .jpg, 15 .png", "1 not read, being no image: 1 .txt", "each counts as a patient"):
        assert said in notes
    assert decode_split(dataset.train, PreprocessSpec(16, 16)).shape == (24, 16, 16)


def test_images_are_split_alike_wherever_the_folder_lies_and_otherwise_by_another_seed(folder, tmp_path):
    moved = shutil.copytree(folder, tmp_path / "elsewhere")
    here, there, other = (
        load_dataset("images", folder),
        load_dataset("images", moved),
        load_dataset("images", folder, seed=1),
    )
    assert here.test.patients == there.test.patients
    assert here.test.patients != other.test.patients


def test_images_get_columns_of_unknown_labels_for_the_findings_of_a_model(folder):
    known = load_dataset("images", folder).with_unknown(["Mass", "Nodule"])
    assert known.findings == ("Mass", "Nodule")
    for split in known.splits:
        assert split.labels.shape == (len(split), 2)
        assert np.isnan(split.labels).all()


def test_images_of_a_table_stay_with_their_patient_and_bring_what_is_known(tmp_path):
    row = ",p{n},F,50,PA"
    path = write_table(tmp_path, "path,patient_id,sex,age,view", row, images=40)
    path.write_text(path.read_text().replace(",p1,", ",p0,").replace(",p2,", ",p0,"))
    dataset = load_dataset("images", path)
    train, dev, test = patients_of(dataset)
    assert not train & dev
    assert not train & test
    assert not dev & test
    assert sum(split.patients.count("p0") for split in dataset.splits) == 3
    assert max(split.patients.count("p0") for split in dataset.splits) == 3
    assert dataset.train.sexes is not None
    assert set(dataset.train.sexes) == {"F"}
    assert dataset.patient_key == "the column 'patient_id'"


def test_images_of_equal_content_stay_in_one_split_and_are_counted(folder):
    for number in range(1, 30, 2):
        shutil.copy(folder / f"{number}.png", folder / f"copy_of_{number}.png")
    dataset = load_dataset("images", folder)
    train, dev, test = (
        {path.name.removeprefix("copy_of_") for path in split.paths if path.suffix == ".png"}
        for split in dataset.splits
    )
    assert not train & dev | train & test | dev & test
    assert "15 images are byte for byte copies of others" in " ".join(dataset.notes)


def test_images_of_two_patients_with_a_copy_between_them_stay_together(tmp_path):
    path = write_table(tmp_path, "path,patient_id", ",p{n}", images=40)
    shutil.copy(tmp_path / "3.png", tmp_path / "7.png")
    shutil.copy(tmp_path / "11.png", tmp_path / "0.png")
    path.write_text(path.read_text().replace(",p11\n", ",p7\n"))
    dataset = load_dataset("images", path)
    (where,) = (split for split in dataset.splits if tmp_path / "3.png" in split.paths)
    assert {tmp_path / f"{number}.png" for number in (3, 7, 11, 0)} <= set(where.paths)


def test_images_cannot_be_one_or_too_few_and_the_line_says_how_many_and_why(tmp_path):
    draw(tmp_path / "one" / "a.png")
    with pytest.raises(DataError, match=f"1 different image in one, at least {FEWEST} are needed: 16 to refit layers"):
        load_dataset("images", tmp_path / "one")
    for number in range(FEWEST - 1):
        draw(tmp_path / "few" / f"{number}.png", seed=number)
    with pytest.raises(DataError, match=f"19 different images in few, at least {FEWEST} are needed"):
        load_dataset("images", tmp_path / "few")
    draw(tmp_path / "few" / "last.png", seed=FEWEST)
    assert [len(split) for split in load_dataset("images", tmp_path / "few").splits] == [16, 2, 2]


def test_images_cannot_all_be_the_same(tmp_path):
    for number in range(40):
        draw(tmp_path / "same" / f"{number}.png", seed=0)
    with pytest.raises(DataError, match="all 40 images in same are copies of one image"):
        load_dataset("images", tmp_path / "same")


def test_images_need_a_folder_with_images_or_a_table(tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="no image in empty: give a folder of images or a table"):
        load_dataset("images", tmp_path / "empty")
    draw(tmp_path / "a.png")
    with pytest.raises(DataError, match=r"expected a folder of images or a table \(.csv\) of their paths, got a.png"):
        load_dataset("images", tmp_path / "a.png")


def test_a_column_of_labels_has_one_clear_answer_and_can_be_left_out(tmp_path):
    path = write_table(tmp_path, "path,Pneumonia,Martian", ",1,0")
    with pytest.raises(
        DataError, match=r"'Pneumonia', 'Martian'.*use --dataset=csv.*--options='ignore=Pneumonia\|Martian'"
    ):
        load_dataset("images", path)
    dataset = load_dataset("images", path, options={"ignore": "Pneumonia|Martian"})
    assert sum(map(len, dataset.splits)) == 30
    assert dataset.findings == ()
    with pytest.raises(DataError, match="expected the column"):
        load_dataset("images", path, options={"ignore": "Pneumonia|Martian|Typo"})


def test_rows_without_their_image_are_counted(tmp_path):
    path = write_table(tmp_path, "path")
    (tmp_path / "4.png").unlink()
    with pytest.raises(DataError, match="1 of 30 listed images are missing"):
        load_dataset("images", path)
    assert sum(map(len, load_dataset("images", path, allow_missing=True).splits)) == 29


def test_unreadable_images_are_refused_by_name_when_they_are_decoded(folder):
    (folder / "1.png").write_bytes(b"not a png")
    dataset = load_dataset("images", folder)
    (split,) = (split for split in dataset.splits if folder / "1.png" in split.paths)
    with pytest.raises(DataError, match=r"1\.png"):
        decode_split(split, PreprocessSpec(16, 16))


@pytest.mark.parametrize(("fraction", "held_out"), [("0.1", 3), ("0.5", 15)])
def test_the_share_that_is_held_out_can_be_chosen(folder, fraction, held_out):
    dataset = load_dataset("images", folder, options={"test_fraction": fraction})
    assert len(dataset.test) == held_out
    assert len(dataset.dev) == math.floor(0.1 * (30 - held_out) + 0.5)
