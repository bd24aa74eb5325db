"""The NIH reader: both editions of the CSV, the official lists, boxes, and what it refuses."""

from __future__ import annotations

import csv
import gzip
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from cxr_compress.data import NIH_FINDINGS, Box, decode_split, load_dataset, load_nih, read_boxes
from cxr_compress.data.readers.base import Missing, read_dataset
from cxr_compress.device.preprocess import PreprocessSpec
from cxr_compress.errors import DataError
from tests.data.files import draw, write_nih


def make_images(patients: int = 30) -> dict[str, tuple[str, str]]:
    """Two images a patient; each patient has two of the findings, the last of every ten none."""
    images = {}
    for patient in range(1, patients + 1):
        pair = f"{NIH_FINDINGS[patient % 14]}|{NIH_FINDINGS[(patient + 5) % 14]}"
        for image in range(2):
            images[f"{patient:08d}_{image:03d}.png"] = (str(patient), "No Finding" if patient % 10 == 0 else pair)
    return images


def make_nih(root: Path, **changes) -> Path:
    images = make_images(90)
    names = list(images)
    return write_nih(root, images, **{"train_val": names[:120], "test": names[120:], **changes})


def test_load_nih_first_edition_in_several_folders_reads_labels_patients_and_lists(tmp_path: Path) -> None:
    dataset = load_dataset("nih", make_nih(tmp_path))
    images = make_images(90)
    assert dataset.findings == NIH_FINDINGS
    assert len(dataset.train) + len(dataset.dev) == 120
    assert [path.name for path in dataset.test.paths] == list(images)[120:]
    for split in dataset.splits:
        for path, labels, patient in zip(split.paths, split.labels, split.patients, strict=True):
            named = {finding for finding, flag in zip(NIH_FINDINGS, labels, strict=True) if flag}
            assert "|".join(sorted(named)) == "|".join(sorted(set(images[path.name][1].split("|")) - {"No Finding"}))
            assert patient == images[path.name][0]
            assert path.is_file()


def test_load_nih_gzipped_csv_gives_the_same(tmp_path: Path) -> None:
    plain = load_nih(make_nih(tmp_path))
    entries = tmp_path / "Data_Entry_2017.csv"
    (tmp_path / "Data_Entry_2017_v2020.csv.gz").write_bytes(gzip.compress(entries.read_bytes()))
    with pytest.raises(DataError, match=r"expected one Data_Entry_2017\*.csv .* found 2; keep one edition"):
        load_nih(tmp_path)
    entries.unlink()
    packed = load_nih(tmp_path)
    assert packed.dev.paths == plain.dev.paths
    np.testing.assert_array_equal(packed.train.labels, plain.train.labels)


def test_load_nih_missing_images_are_counted_and_allowed_only_on_request(tmp_path: Path) -> None:
    make_nih(tmp_path)
    gone = [sorted((tmp_path / "images_001" / "images").iterdir())[index] for index in (0, 1, -1)]
    for path in gone:
        path.unlink()
    with pytest.raises(
        DataError, match=r"2 of 120 train_val images and 1 of 60 test images are missing .*allow_missing"
    ):
        load_dataset("nih", tmp_path)
    dataset = load_dataset("nih", tmp_path, allow_missing=True)
    assert sum(map(len, dataset.splits)) == 180 - 3


def test_load_nih_cut_off_gzip_is_refused(tmp_path: Path) -> None:
    make_nih(tmp_path)
    entries = tmp_path / "Data_Entry_2017.csv"
    packed = gzip.compress(entries.read_bytes())
    entries.unlink()
    (tmp_path / "Data_Entry_2017.csv.gz").write_bytes(packed[: len(packed) // 2])
    with pytest.raises(DataError, match=r"Data_Entry_2017.csv.gz cannot be read .*download it again"):
        load_nih(tmp_path)


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("Cardiomegaly", "Big Heart", "unknown finding 'Big Heart'; expected 'No Finding' or some of the 14"),
        ("Patient ID", "PID", r"expected the column\(s\) Patient ID in Data_Entry_2017.csv"),
        (",0,1,058Y", ",0,,058Y", "line 2 of Data_Entry_2017.csv has no patient or no labels"),
        ("00000002_000", "00000002_777", "1 listed without labels, 1 labeled but in no list"),
    ],
)
def test_load_nih_damaged_csv_is_one_clear_line(tmp_path: Path, old: str, new: str, message: str) -> None:
    entries = make_nih(tmp_path) / "Data_Entry_2017.csv"
    entries.write_text(entries.read_text().replace(old, new))
    with pytest.raises(DataError, match=message):
        load_nih(tmp_path)


def test_load_nih_patient_in_both_lists_is_refused(tmp_path: Path) -> None:
    names = list(make_images(90))
    make_nih(tmp_path, train_val=names[:121], test=names[121:])  # image 120 is the first of two of its patient
    with pytest.raises(
        DataError, match=r"1 patient\(s\) with 2 images are in both \w+ and test \(the key is the column"
    ):
        load_nih(tmp_path)


def test_load_nih_missing_list_or_images_are_refused(tmp_path: Path) -> None:
    make_nih(tmp_path, images=False)
    with pytest.raises(DataError, match=r"expected images in images/ or images_001/images/"):
        load_nih(tmp_path)
    (tmp_path / "test_list.txt").unlink()
    with pytest.raises(DataError, match=r"expected the official list test_list.txt"):
        load_nih(tmp_path)
    with pytest.raises(DataError, match="expected a folder"):
        load_nih(tmp_path / "nowhere")


def test_load_nih_finding_without_images_in_test_is_refused(tmp_path: Path) -> None:
    entries = make_nih(tmp_path) / "Data_Entry_2017.csv"
    lines = entries.read_text().splitlines()
    lines[121:] = [line.replace("|Hernia", "").replace("Hernia|", "") for line in lines[121:]]
    entries.write_text("\n".join(lines))
    with pytest.raises(
        DataError, match="expected images with and without 'Hernia' in test, none of its 60 images is with"
    ):
        load_nih(tmp_path)


def test_load_nih_real_csv_and_lists_with_a_real_subset_agree_with_its_labels(cxr_data: Path, tmp_path: Path) -> None:
    """The images end in .jpg, the CSV says .png: linked under the CSV's names, they are decoded by their content."""
    for name in ("Data_Entry_2017_v2020.csv.gz", "train_val_list.txt", "test_list.txt"):
        (tmp_path / name).symlink_to(cxr_data / "nih_meta" / name)
    (tmp_path / "images").mkdir()
    with (cxr_data / "nih_mini" / "labels.csv").open() as file:
        rows = {row["image"]: row for row in csv.DictReader(file)}
    for name in rows:
        (tmp_path / "images" / name).symlink_to(cxr_data / "nih_mini" / "images" / name.replace(".png", ".jpg"))
    with pytest.raises(DataError, match="85062 of 86524 train_val images and 25351 of 25596 test images are missing"):
        load_dataset("nih", tmp_path)
    dataset = load_dataset("nih", tmp_path, allow_missing=True)
    assert (len(dataset.train) + len(dataset.dev), len(dataset.test)) == (1462, 245)
    for split in dataset.splits:
        for path, labels, patient in zip(split.paths, split.labels, split.patients, strict=True):
            row = rows[path.name]
            assert patient == row["patient_id"]
            assert [int(flag) for flag in labels] == [int(row[finding]) for finding in NIH_FINDINGS]
    assert decode_split(dataset.dev.take(range(4)), PreprocessSpec(64, 64)).std() > 10


def test_load_nih_age_sex_and_view_are_read_in_both_spellings_and_typing_errors_are_unknown(tmp_path: Path) -> None:
    entries = make_nih(tmp_path) / "Data_Entry_2017.csv"
    lines = entries.read_text().splitlines()
    for row, (age, sex, view) in enumerate([("58", "F", "AP"), ("414Y", "M", "PA"), ("006M", "F", "PA")], start=121):
        lines[row] = lines[row].replace("058Y,M,PA", f"{age},{sex},{view}")
    entries.write_text("\n".join(lines))
    test = load_nih(tmp_path).test
    np.testing.assert_array_equal(test.ages[:4], np.array([58, np.nan, 0.5, 58], np.float32))
    assert test.sexes[:4] == ("F", "M", "F", "M")
    assert test.views[:4] == ("AP", "PA", "PA", "PA")
    entries.write_text("\n".join(lines).replace(",58,", ",old,"))
    with pytest.raises(DataError, match=r"line 122 of Data_Entry_2017.csv has the age 'old'; expected years such as"):
        load_nih(tmp_path)


def test_load_dataset_nih_exclude_list_takes_images_out_wherever_they_are_named(tmp_path: Path) -> None:
    whole = load_dataset("nih", make_nih(tmp_path))
    bad = [whole.test.paths[0].name, whole.train.paths[3].name]
    listed = tmp_path / "bad.csv"
    listed.write_text(f",Index,Inverted\n0,{bad[0]},1.0\n1,{bad[1]},0.0\n")
    dataset = load_dataset("nih", tmp_path, options={"exclude_list": str(listed)})
    names = {path.name for split in dataset.splits for path in split.paths}
    assert len(names) == sum(map(len, whole.splits)) - 2
    assert not names & set(bad)
    assert dataset.notes == ("2 images of exclude_list are left out",)
    listed.write_text("nothing\n")
    with pytest.raises(DataError, match=r"no image name of this set is in exclude_list"):
        load_dataset("nih", tmp_path, options={"exclude_list": str(listed)})


def test_read_dataset_nih_can_keep_the_missing_images(tmp_path: Path) -> None:
    make_nih(tmp_path)
    gone = sorted((tmp_path / "images_001" / "images").iterdir())[0]
    gone.unlink()
    dataset = read_dataset("nih", tmp_path, missing=Missing.KEEP)
    assert sum(map(len, dataset.splits)) == 180
    absent = [path for split in dataset.splits for path in split.paths if not path.exists()]
    assert [path.name for path in absent] == [gone.name]


def test_read_dataset_nih_whole_real_label_file_has_the_published_counts(cxr_data: Path, tmp_path: Path) -> None:
    for name in ("Data_Entry_2017_v2020.csv.gz", "train_val_list.txt", "test_list.txt"):
        (tmp_path / name).symlink_to(cxr_data / "nih_meta" / name)
    draw(tmp_path / "images" / "00000001_000.png")
    whole = read_dataset("nih", tmp_path, missing=Missing.KEEP)
    assert (len(whole.train) + len(whole.dev), len(whole.test)) == (86524, 25596)
    assert len({patient for split in whole.splits for patient in split.patients}) == 30805
    assert not set(whole.test.patients) & (set(whole.train.patients) | set(whole.dev.patients))
    positives = sum(split.labels.sum(axis=0) for split in whole.splits)
    counts = dict(zip(NIH_FINDINGS, positives.astype(int).tolist(), strict=True))
    # Wang et al. 2017, table 1 of the ChestX-ray14 readme; Hernia and Pneumonia are its two rarest.
    assert (counts["Infiltration"], counts["Pneumonia"], counts["Hernia"]) == (19894, 1431, 227)
    ages = np.concatenate([split.ages for split in whole.splits])
    assert np.nanmax(ages) <= 110
    assert np.isnan(ages).sum() < 30
    assert {sex for split in whole.splits for sex in split.sexes} == {"F", "M"}
    assert {view for split in whole.splits for view in split.views} == {"PA", "AP"}
    with (cxr_data / "nih_meta" / "cxr14_bad_labels.csv").open() as file:
        named = {row["Index"] for row in csv.DictReader(file)}
    assert len(named) == 257  # in 432 rows: some images are listed more than once
    assert named <= {path.name for split in whole.splits for path in split.paths}


def test_load_dataset_unknown_name_and_misplaced_option_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"expected a data set of chexpert, csv, .*, nih, phantom, .*; got 'mnist'"):
        load_dataset("mnist", tmp_path)
    draw(tmp_path / "images" / "a.png")
    with pytest.raises(DataError, match="allow_missing is for sets with an official list"):
        load_dataset("kermany", tmp_path, allow_missing=True)
    with pytest.raises(DataError, match="kermany: unknown option 'sizes'; it knows allow_one_class"):
        load_dataset("kermany", tmp_path, options={"sizes": 3})
    with pytest.raises(DataError, match="phantom: unknown option 'x'; it knows allow_one_class"):
        load_dataset("phantom", tmp_path, options={"x": 3})


HEADER = "Image Index,Finding Label,Bbox [x,y,w,h],,,"


def write_boxes(folder: Path, *rows: str) -> Path:
    path = folder / "BBox_List_2017.csv"
    path.write_text("\n".join([HEADER, *rows]) + "\n")
    return path


def test_read_boxes_images_with_several_and_the_alias_of_infiltration(tmp_path: Path) -> None:
    path = write_boxes(tmp_path, "a.png,Mass,1.5,2,3,4,,,", "b.png,Infiltrate,0,0,1024,1024", "a.png,Nodule,5,6,7,8")
    assert read_boxes(path) == {
        "a.png": (Box("Mass", 1.5, 2, 3, 4), Box("Nodule", 5, 6, 7, 8)),
        "b.png": (Box("Infiltration", 0, 0, 1024, 1024),),
    }


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ("b.png,Cough,1,2,3,4", "line 3 of BBox_List_2017.csv has the unknown finding 'Cough'"),
        ("b.png,Mass,1,2,3,wide", "line 3 of BBox_List_2017.csv has a box that is no four numbers"),
        ("b.png,Mass,1,2,3", "line 3 of BBox_List_2017.csv ends after 5 cells, expected at least 6"),
        ("b.png,Mass,1000,2,99,4", "line 3 of BBox_List_2017.csv has a box outside the image of 1024 x 1024"),
        ("b.png,Mass,1,2,0,4", "line 3 of BBox_List_2017.csv has a box outside the image"),
        ("b.png,Mass,nan,2,3,4", "line 3 of BBox_List_2017.csv has a box outside the image"),
    ],
)
def test_read_boxes_damaged_row_is_named(tmp_path: Path, row: str, message: str) -> None:
    with pytest.raises(DataError, match=message):
        read_boxes(write_boxes(tmp_path, "a.png,Mass,1.5,2,3,4", row))


def test_read_boxes_empty_or_missing_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"expected boxes in BBox_List_2017.csv, found none"):
        read_boxes(write_boxes(tmp_path))
    with pytest.raises(DataError, match=r"nih: none.csv cannot be read \(No such file"):
        read_boxes(tmp_path / "none.csv")


def test_read_boxes_real_file_has_the_published_boxes(cxr_data: Path) -> None:
    boxes = read_boxes(cxr_data / "nih_meta" / "BBox_List_2017.csv.gz")
    counts = Counter(box.finding for image in boxes.values() for box in image)
    assert len(boxes) == 880
    assert sum(counts.values()) == 984
    # Wang et al. 2017, section 4: eight findings have boxes.
    assert counts == {
        "Atelectasis": 180,
        "Cardiomegaly": 146,
        "Effusion": 153,
        "Infiltration": 123,
        "Mass": 85,
        "Nodule": 79,
        "Pneumonia": 120,
        "Pneumothorax": 98,
    }
    assert set(counts) <= set(NIH_FINDINGS)
