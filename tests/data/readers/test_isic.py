"""Dermoscopic sets: layouts of the archive, the challenges and HAM10000, and what of them is refused in one line."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest

from cxr_compress.cli.data import main
from cxr_compress.data import load_dataset
from cxr_compress.data.readers.base import DATASETS, read_dataset
from cxr_compress.data.readers.csv_table import table_bytes
from cxr_compress.errors import DataError

CLASSES = ("bkl", "mel", "nv")
HAM_HEADER = "lesion_id,image_id,dx,dx_type,age,sex,localization"


def draw_color(path: Path, seed: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    image = np.random.default_rng(seed).integers(0, 256, (12, 12, 3), np.uint8)
    path.write_bytes(cv2.imencode(path.suffix, image)[1].tobytes())


def ham_rows(lesions: int = 36) -> list[str]:
    """Two images a lesion, each class in 12 lesions."""
    return [
        f"HAM_{number // 2:07d},ISIC_{number:07d},{CLASSES[number // 2 % 3]},histo,{40 + number % 9}.0,male,back"
        for number in range(2 * lesions)
    ]


def write_ham(folder: Path, rows: list[str] | None = None, header: str = HAM_HEADER) -> Path:
    """The metadata beside two folders of images, as HAM10000 comes; names in the table have no suffix."""
    folder.mkdir(parents=True, exist_ok=True)
    rows = ham_rows() if rows is None else rows
    (folder / "HAM10000_metadata.csv").write_text("\n".join([header, *rows]) + "\n")
    for number, row in enumerate(rows):
        name = row.split(",")[1]
        draw_color(folder / f"HAM10000_images_part_{1 + number % 2}" / f"{name}.jpg", number)
    return folder


def test_isic_ham10000_layout_is_read_by_lesion_in_color_with_classes_that_exclude_one_another(tmp_path: Path) -> None:
    dataset = load_dataset("isic", write_ham(tmp_path))
    assert (dataset.findings, dataset.exclusive, dataset.color) == (CLASSES, True, "rgb")
    assert dataset.patient_key == "the column 'lesion_id'"
    everyone = [set(split.patients) for split in dataset.splits]
    assert sum(map(len, everyone)) == len(set().union(*everyone)) == 36
    for split in dataset.splits:
        assert len(split) == 2 * len(set(split.patients))
        for path, labels in zip(split.paths, split.labels, strict=True):
            number = int(path.stem.removeprefix("ISIC_"))
            assert path.parent.name == f"HAM10000_images_part_{1 + number % 2}"
            assert labels.tolist() == [float(name == CLASSES[number // 2 % 3]) for name in CLASSES]
    assert dataset.train.ages is not None
    assert "3 classes from the column 'dx': bkl, mel, nv" in dataset.notes
    assert "columns that are not read: dx_type, localization" in dataset.notes
    assert "the table has no column split: dev and test are drawn by seed" in dataset.notes


def test_isic_columns_and_suffixes_of_other_layouts_give_the_same(tmp_path: Path) -> None:
    expected = load_dataset("isic", write_ham(tmp_path / "ham"))
    rows = [row.split(",") for row in ham_rows()]
    layouts = {
        "image,label,lesion_id": [f"{image}.jpg,{kind},{lesion}" for lesion, image, kind, *_ in rows],
        # The suffix of the table is not that of the files, and a diagnosis beside dx is not what counts.
        "isic_id,dx,diagnosis,lesion_id": [f"{image}.png,{kind},x,{lesion}" for lesion, image, kind, *_ in rows],
        "Image ID,kind,label,lesion_id": [f"{image},{kind},wrong,{lesion}" for lesion, image, kind, *_ in rows],
    }
    for number, (header, lines) in enumerate(layouts.items()):
        table = tmp_path / f"table{number}.csv"
        table.write_text("\n".join([header, *lines]) + "\n")
        options = {"table": str(table), **({"label_column": "kind"} if "kind" in header else {})}
        dataset = load_dataset("isic", tmp_path / "ham", options=options | {"attribution": "a clinic"})
        assert [split.paths for split in dataset.splits] == [split.paths for split in expected.splits]
        for one, other in zip(dataset.splits, expected.splits, strict=True):
            np.testing.assert_array_equal(one.labels, other.labels)
    assert (
        dataset.attribution == "a clinic; light skin alone, as far as seen: a model of it must not be used on dark skin"
    )
    options |= {"attribution": "a clinic", "population": "skin of all types"}
    assert read_dataset("isic", tmp_path / "ham", options=options).attribution == "a clinic; skin of all types"
    ordered = read_dataset("isic", tmp_path / "ham", options={**options, "findings": "nv|mel|bkl"})
    np.testing.assert_array_equal(ordered.train.labels, expected.train.labels[:, ::-1])


def test_isic_split_column_unknown_classes_and_images_of_no_lesion(tmp_path: Path) -> None:
    rows = [
        f"{'' if number < 4 else f'L{number // 2}'},i{number},{'' if number == 5 else CLASSES[number // 2 % 3]},"
        f"{('train', 'val', 'test')[number // 12]},unknown"
        for number in range(36)
    ]
    dataset = load_dataset("isic", write_ham(tmp_path, rows, "lesion_id,image,dx,split,sex"))
    assert [len(split) for split in dataset.splits] == [12, 12, 12]
    assert np.isnan(dataset.train.labels[5]).all()
    assert len(set(dataset.train.patients)) == 8
    assert "4 of 36 images have no lesion_id: each counts as one of its own" in dataset.notes
    assert not any("is taken as unknown" in note for note in dataset.notes), "a table may say that it does not know"


@pytest.mark.parametrize(
    ("row", "message"),
    [
        (
            "HAM_1,x1,Mel,histo,40,male,back",
            "isic: line 74 of HAM10000_metadata.csv has the class 'Mel' in the column 'dx', line 4 has 'mel'; expected "
            "one spelling of each class",
        ),
        ("HAM_1,x1, mel  a,histo,40,male,back", "'mel  a' in train, none of its|'mel  a' in dev"),
        ("HAM_1,x1,unknown,histo,40,male,back", "line 74 .* has 'unknown' in the column 'dx', .* leave the cell empty"),
        ("HAM_1,ISIC_0000003,nv,histo,40,male,back", "line 74 .* names 'ISIC_0000003', which an earlier row names"),
        ("HAM_1,x1,nv,histo,old,male,back", "line 74 .* has the age 'old'; expected years"),
    ],
)
def test_isic_bad_row_is_one_line_with_its_place(tmp_path: Path, row: str, message: str) -> None:
    write_ham(tmp_path, [*ham_rows(), row])
    with pytest.raises(DataError, match=message):
        load_dataset("isic", tmp_path)


def test_isic_blanks_around_a_class_are_no_part_of_it(tmp_path: Path) -> None:
    rows = [row.replace(",mel,", ", mel ,") if number % 2 else row for number, row in enumerate(ham_rows())]
    assert load_dataset("isic", write_ham(tmp_path, rows)).findings == CLASSES


def test_isic_class_that_is_not_expected_alone_or_missing_is_refused(tmp_path: Path) -> None:
    write_ham(tmp_path)
    with pytest.raises(DataError, match=r"has the class 'bkl' in the column 'dx'; expected mel, nv, or nothing"):
        load_dataset("isic", tmp_path, options={"findings": "mel|nv"})
    with pytest.raises(DataError, match=r"two classes or more, got mel \(for one class .* --dataset=csv"):
        load_dataset("isic", tmp_path, options={"findings": "mel"})
    with pytest.raises(DataError, match=r"expected the column\(s\) kind in HAM10000_metadata.csv"):
        load_dataset("isic", tmp_path, options={"label_column": "kind"})
    with pytest.raises(DataError, match="in the column 'dx_type', all 72 rows that name one name 'histo'; add images"):
        load_dataset("isic", tmp_path, options={"label_column": "dx_type"})
    write_ham(tmp_path / "plain", ["0,a,1", "0,b,2"], "lesion_id,image,kind")
    with pytest.raises(
        DataError, match=r"isic: expected a column of classes in .*, dx or label or diagnosis; name another"
    ):
        load_dataset("isic", tmp_path / "plain")


def test_isic_lesion_in_two_splits_and_missing_images_are_refused(tmp_path: Path) -> None:
    rows = [f"L{number // 2},i{number},{CLASSES[number // 2 % 3]},train" for number in range(24)]
    rows += [f"T{number},t{number},{CLASSES[number % 3]},test" for number in range(6)]
    write_ham(tmp_path, [*rows, "L3,extra,nv,test"], "lesion_id,image,dx,split")
    with pytest.raises(
        DataError, match=r"1 patient\(s\) with 3 images are in both (train|dev) and test \(the key is the column 'les"
    ):
        load_dataset("isic", tmp_path)
    next(tmp_path.rglob("i7.jpg")).unlink()
    with pytest.raises(DataError, match="isic: 1 of 31 listed images are missing"):
        load_dataset("isic", tmp_path)


def test_isic_split_table_keeps_the_classes_and_the_color(tmp_path: Path, capsys) -> None:
    folder = write_ham(tmp_path / "ham")
    table = tmp_path / "split.csv"
    assert main(["split", "--dataset=isic", f"--data_dir={folder}", f"--output_file={table}"]) == 0
    assert f"--dataset=csv --options=table={table},label_column=label,color=rgb reads it" in capsys.readouterr().out
    options = {"table": str(table), "label_column": "label", "color": "rgb"}
    again, expected = load_dataset("csv", folder, options=options), load_dataset("isic", folder)
    assert (again.findings, again.exclusive, again.color) == (expected.findings, True, "rgb")
    assert [len(split) for split in again.splits] == [len(split) for split in expected.splits]
    assert table_bytes(again, folder) == table.read_bytes()


def test_isic_and_csv_options_are_all_in_the_help_of_cxr_data(capsys) -> None:
    assert main(["--help"]) == 0
    out = capsys.readouterr().out
    for name in ("csv", "isic"):
        own = out[out.index(f"\n  {name}: ") :]
        assert all(f"\n    {option}: " in own for option in DATASETS[name].options if option != "allow_one_class")


def test_isic_real_challenge_of_2017_has_its_official_split(cxr_data: Path) -> None:
    dataset = load_dataset("isic", cxr_data / "skin_isic2017")
    assert dataset.findings == ("melanoma", "nevus", "seborrheic_keratosis")
    counts = [split.positive.sum(axis=0).tolist() for split in dataset.splits]
    assert counts == [[374, 1372, 254], [30, 78, 42], [117, 393, 90]]
