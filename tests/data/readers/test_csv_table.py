"""The generic table: what its columns mean, splits with and without a column, what it writes and reads again."""

from __future__ import annotations

import csv
import gzip
import math
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cxr_compress.data import load_dataset
from cxr_compress.data.dataset import Dataset
from cxr_compress.data.readers.base import Missing, read_dataset
from cxr_compress.data.readers.csv_table import table_bytes
from cxr_compress.data.splits import Split
from cxr_compress.errors import DataError
from tests.data.files import draw

HEADER = "path,Cough,Fever,patient_id,sex,age,view,split,source"


def write_table(folder: Path, *rows: str, header: str = HEADER, name: str = "images.csv", images: bool = True) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / name
    path.write_text("\n".join([header, *rows]) + "\n", encoding="utf-8")
    for row in rows if images else ():
        if row and not row.startswith(","):
            (folder / row.partition(",")[0]).write_bytes(b"")  # only listed by the reader
    return path


def make_rows(images: int = 12, parts: tuple[str, ...] = ("train", "train", "val", "test")) -> list[str]:
    """Both findings in both classes of each part; two images a patient."""
    rows = []
    for image in range(images * len(parts)):
        part, patient = parts[image // 2 % len(parts)], image // 2
        labels = f"{image % 2},{int(patient // len(parts) % 2)}"
        rows.append(f"{image:03d}.png,{labels},p{patient},F,4{image % 10},PA,{part},here")
    return rows


def test_load_dataset_csv_columns_become_labels_people_and_splits(tmp_path: Path) -> None:
    write_table(
        tmp_path,
        "a.png,1,0.25,p1,Male,058Y,Lateral,train,north",
        "b.png,0,,p2,female,,pa,Train,",
        "c.png,0,1,p3,,999,,validation,south",
        "d.png,1,0,p4,F,61.5,AP,val,south",
        "",
        "e.png,0,1,p5,M,0,LL,TEST,north",
        "f.png,1,0,p5,M,0,,test,north",
    )
    dataset = read_dataset("csv", tmp_path)
    assert dataset.findings == ("Cough", "Fever")
    assert [[path.name for path in split.paths] for split in dataset.splits] == [
        ["a.png", "b.png"],
        ["c.png", "d.png"],
        ["e.png", "f.png"],
    ]
    train = dataset.train
    np.testing.assert_array_equal(train.labels, np.array([[1, 0.25], [0, math.nan]], np.float32))
    assert (train.sexes, train.views, train.sources) == (("M", "F"), ("L", "PA"), ("north", ""))
    np.testing.assert_array_equal(train.ages, np.array([58, math.nan], np.float32))
    np.testing.assert_array_equal(dataset.dev.ages, np.array([math.nan, 61.5], np.float32))
    assert dataset.test.patients == ("p5", "p5")
    assert dataset.patient_key == "the column 'patient_id'"
    assert dataset.notes == ("the age of 1 of 6 images is taken as unknown; expected years from 0 to 110",)


def test_load_dataset_csv_table_folder_packed_or_apart_from_the_images_gives_the_same(tmp_path: Path) -> None:
    table = write_table(tmp_path / "images", *make_rows())
    expected = load_dataset("csv", table)
    assert load_dataset("csv", tmp_path / "images").train.paths == expected.train.paths
    packed = tmp_path / "elsewhere.csv.gz"
    packed.write_bytes(gzip.compress(b"\xef\xbb\xbf" + table.read_bytes()))  # spreadsheets write such marks
    apart = load_dataset("csv", tmp_path / "images", options={"table": str(packed)})
    assert [split.paths for split in apart.splits] == [split.paths for split in expected.splits]
    (tmp_path / "images" / "two.csv").write_text("path\n")
    with pytest.raises(DataError, match=r"expected one .csv in .*, found 2; name the table itself"):
        load_dataset("csv", tmp_path / "images")
    assert load_dataset("csv", tmp_path / "images", options={"table": "images.csv"}).train.paths == expected.train.paths
    with pytest.raises(DataError, match=r"expected a table, none.csv does not exist"):
        load_dataset("csv", tmp_path / "images", options={"table": "none.csv"})


def test_load_dataset_csv_without_dev_rows_carves_dev_out_of_train(tmp_path: Path) -> None:
    write_table(tmp_path, *make_rows(parts=("train", "train", "train_val", "test")))
    dataset = load_dataset("csv", tmp_path, dev_fraction=0.3)
    assert [len(split) for split in dataset.splits] == [24, 12, 12]
    assert not set(dataset.train.patients) & set(dataset.dev.patients)


def test_load_dataset_csv_without_split_is_divided_by_seed_and_says_so(tmp_path: Path) -> None:
    rows = [row.replace(",train,here", "") for row in make_rows(parts=("train",) * 4)]
    write_table(tmp_path, *rows, header="path,Cough,Fever,patient_id,sex,age,view")
    options = {"test_fraction": 0.5}
    dataset = load_dataset("csv", tmp_path, dev_fraction=0.5, options=options)
    assert [len(split) for split in dataset.splits] == [12, 12, 24]
    assert dataset.notes == ("the table has no column split: dev and test are drawn by seed",)
    other = load_dataset("csv", tmp_path, dev_fraction=0.5, seed=1, options=options)
    assert other.test.paths != dataset.test.paths


def test_load_dataset_csv_lesions_group_images_and_a_patient_outranks_them(tmp_path: Path) -> None:
    rows = [f"{image}.png,{image // 3 % 2},L{image // 3}" for image in range(60)]
    write_table(tmp_path, *rows, header="path,Melanoma,lesion_id")
    dataset = load_dataset("csv", tmp_path, options={"color": "rgb", "attribution": "a clinic"})
    assert all(len(split) == 3 * len(set(split.patients)) for split in dataset.splits)
    assert (dataset.color, dataset.attribution) == ("rgb", "a clinic")
    rows = [f"{image}.png,{image // 3 % 2},L{image // 3},{'' if image == 59 else image // 6}" for image in range(60)]
    write_table(tmp_path, *rows, header="path,Melanoma,lesion_id,patient_id")
    everyone = {patient for split in load_dataset("csv", tmp_path).splits for patient in split.patients}
    assert everyone == {str(number) for number in range(10)} | {"L19"}


def test_load_dataset_csv_without_patients_says_that_every_image_is_one(tmp_path: Path) -> None:
    write_table(tmp_path, *(f"{image}.png,{image % 2}" for image in range(40)), header="path,Cough")
    dataset = load_dataset("csv", tmp_path)
    assert len({patient for split in dataset.splits for patient in split.patients}) == 40
    assert "one person may be in two splits" in dataset.notes[0]
    assert dataset.patient_key == "the path, for want of a patient_id"


def test_load_dataset_csv_findings_and_path_column_are_chosen_by_option(tmp_path: Path) -> None:
    rows = [f"{image}.png,free text {image},{image % 2},7" for image in range(40)]
    write_table(tmp_path, *rows, header="file,report,Cough,doctor")
    with pytest.raises(DataError, match=r"expected the column\(s\) path in images.csv"):
        load_dataset("csv", tmp_path)
    options = {"path_column": "file"}
    with pytest.raises(
        DataError, match=r"line 2 of images.csv has 'free text 0' in the column 'report'; .*option findings"
    ):
        load_dataset("csv", tmp_path, options=options)
    chosen = load_dataset("csv", tmp_path, options={**options, "findings": "Cough"})
    assert chosen.findings == ("Cough",)
    assert "columns that are not read: report, doctor" in chosen.notes
    with pytest.raises(DataError, match=r"expected the column\(s\) Fever in images.csv"):
        load_dataset("csv", tmp_path, options={**options, "findings": ["Fever"]})


@pytest.mark.parametrize(
    ("row", "message"),
    [
        (",1,0,p9,F,4,PA,train,x", "line 3 of images.csv has nothing in the column 'path'"),
        ("b.png,1,0,,F,4,PA,train,x", "line 3 of images.csv has no patient_id; expected one for every image"),
        ("b.png,1,0,p9,F,4,PA,holdout,x", "line 3 of images.csv has the split 'holdout'; expected train, dev, val"),
        ("b.png,1,0,p9,F,4,PA,,x", "line 3 of images.csv has the split ''"),
        ("b.png,1,0,p9,F,old,PA,train,x", "line 3 of images.csv has the age 'old'"),
        ("b.png,2,0,p9,F,4,PA,train,x", "line 3 of images.csv has '2' in the column 'Cough'; expected 0, 1, a soft"),
        ("b.png,0_1,0,p9,F,4,PA,train,x", "line 3 of images.csv has '0_1' in the column 'Cough'"),
        ("b.png,-1,0,p9,F,4,PA,train,x", "line 3 of images.csv has '-1' in the column 'Cough'"),
        ("b.png,nan,0,p9,F,4,PA,train,x", "line 3 of images.csv has 'nan' in the column 'Cough'"),
        ("b.png,1,0,p9,F,4,PA,train", "line 3 of images.csv has 8 cells, expected 9 as in the header"),
        ("b.png,1,0,Doe, J.,F,4,PA,train,x", "line 3 of images.csv has 10 cells, expected 9"),
        ("000.png,1,0,p9,F,4,PA,train,x", "line 3 of images.csv names '000.png', which an earlier row names"),
        (
            'b.png,"1,0,p9,F,4,PA,train,x',
            r"images.csv cannot be read \(unexpected end of data, line 3\); a quote may",
        ),
    ],
)
def test_load_dataset_csv_bad_row_is_named_with_file_and_line(tmp_path: Path, row: str, message: str) -> None:
    write_table(tmp_path, make_rows()[0], row, images=False)
    with pytest.raises(DataError, match=message):
        read_dataset("csv", tmp_path, missing=Missing.KEEP)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"path,Cough,Cough\n", "the column 'Cough' is there twice in images.csv"),
        (b"path,patient_id\n", "expected at least one column of labels beside 'path' in images.csv"),
        (b"", "csv: images.csv is empty; expected a header with path, and rows"),
        (b"\n \n", "csv: images.csv is empty"),
        (b"path,Cough\n\xff\xfe", r"images.csv is not UTF-8 \(byte 0xff in line 2\).*; save it as 'CSV UTF-8'"),
        (b"path,Cough\n", "csv: images.csv has a header and no rows; expected one for each image"),
    ],
)
def test_load_dataset_csv_broken_table_is_one_clear_line(tmp_path: Path, content: bytes, message: str) -> None:
    (tmp_path / "images.csv").write_bytes(content)
    with pytest.raises(DataError, match=message):
        load_dataset("csv", tmp_path)


def test_load_dataset_csv_missing_images_are_counted_dropped_or_kept(tmp_path: Path) -> None:
    write_table(tmp_path, *make_rows())
    for name in ("000.png", "017.png"):
        (tmp_path / name).unlink()
    with pytest.raises(DataError, match="csv: 2 of 48 listed images are missing"):
        load_dataset("csv", tmp_path)
    assert sum(map(len, load_dataset("csv", tmp_path, allow_missing=True).splits)) == 46
    assert sum(map(len, read_dataset("csv", tmp_path, missing=Missing.KEEP).splits)) == 48


def test_load_dataset_csv_patient_in_two_splits_is_refused(tmp_path: Path) -> None:
    write_table(tmp_path, *make_rows(), "x.png,1,0,p3,F,4,PA,train,x")
    with pytest.raises(
        DataError, match=r"csv: 1 patient\(s\) with 3 images are in both train and test \(the key is the co"
    ):
        load_dataset("csv", tmp_path)


def test_load_dataset_csv_rare_finding_may_lack_a_class_in_test_on_request(tmp_path: Path) -> None:
    write_table(tmp_path, *(row.replace(",1,p", ",0,p") if ",test," in row else row for row in make_rows()))
    with pytest.raises(DataError, match=r"with and without 'Fever' in test, .*or the option allow_one_class"):
        load_dataset("csv", tmp_path)
    dataset = load_dataset("csv", tmp_path, options={"allow_one_class": "true"})
    assert dataset.allow_one_class
    assert dataset.findings == ("Cough", "Fever")


# Text without control characters or blanks around it; commas, quotes and line breaks inside are the table's business.
words = st.text(st.characters(blacklist_categories=("Cs", "Cc"), whitelist_characters="\n"), min_size=1, max_size=8)
words = words.map(str.strip).filter(lambda word: bool(word) and "\x00" not in word)
numbers = st.one_of(st.sampled_from([0.0, 1.0, math.nan]), st.floats(0, 1, width=32))
images = st.lists(
    st.tuples(
        st.sampled_from(["train", "dev", "test"]),
        words,
        st.tuples(numbers, numbers),
        st.one_of(st.just(math.nan), st.floats(0, 110, width=32)),
        st.sampled_from(["F", "M", ""]),
        st.sampled_from(["PA", "AP", "L", ""]),
        st.one_of(st.just(""), words),
    ),
    min_size=1,
    max_size=12,
)


def make_dataset(drawn, findings=("Cough", 'Fever, "high"'), root: Path = Path("/images")) -> Dataset:
    def part(name: str) -> Split:
        chosen = [(number, image) for number, image in enumerate(drawn) if image[0] == name]
        return Split(
            name,
            tuple(root / f"in, side/{number:02d} ü.png" for number, _ in chosen),
            np.array([image[2] for _, image in chosen], np.float32).reshape(-1, 2),
            tuple(image[1] for _, image in chosen),
            ages=np.array([image[3] for _, image in chosen], np.float32),
            sexes=tuple(image[4] for _, image in chosen),
            views=tuple(image[5] for _, image in chosen),
            sources=tuple(image[6] for _, image in chosen),
        )

    return Dataset("toy", findings, part("train"), part("dev"), part("test"), "nobody")


@settings(max_examples=60)
@given(images)
def test_table_bytes_of_any_set_read_again_are_the_same_set(tmp_path_factory, drawn) -> None:
    # A dev row, for without one the reader would carve dev out of train.
    drawn = [*drawn, ("dev", "someone", (1.0, 0.0), 1.0, "F", "PA", "x")]
    dataset = make_dataset(drawn)
    table = tmp_path_factory.mktemp("table") / "split.csv"
    table.write_bytes(table_bytes(dataset, Path("/images")))
    again = read_dataset("csv", Path("/images"), missing=Missing.KEEP, options={"table": str(table)})
    assert again.findings == dataset.findings
    for one, other in zip(dataset.splits, again.splits, strict=True):
        assert (one.paths, one.patients, one.sexes, one.views) == (
            other.paths,
            other.patients,
            other.sexes,
            other.views,
        )
        assert one.sources == other.sources
        np.testing.assert_array_equal(one.labels, other.labels)
        np.testing.assert_array_equal(one.ages, other.ages)
    assert table_bytes(again, Path("/images")) == table.read_bytes()


@given(images, st.randoms(use_true_random=False))
def test_table_bytes_order_of_images_and_place_change_nothing(drawn, shuffler) -> None:
    dataset = make_dataset(drawn)
    order = list(range(len(dataset.train)))
    shuffler.shuffle(order)
    shuffled = Dataset("toy", dataset.findings, dataset.train.take(order), dataset.dev, dataset.test, "nobody")
    elsewhere = make_dataset(drawn, root=Path("/mnt/x"))
    expected = table_bytes(dataset, Path("/images"))
    assert table_bytes(shuffled, Path("/images")) == table_bytes(elsewhere, Path("/mnt/x")) == expected


def test_table_bytes_what_a_table_cannot_hold_is_refused() -> None:
    image = ("train", "p", (1.0, 0.0), 1.0, "F", "PA", "x")
    with pytest.raises(DataError, match="the finding 'source' has the name of a column with another meaning"):
        table_bytes(make_dataset([image], ("Cough", "source")), Path("/images"))
    with pytest.raises(DataError, match="' p' begins or ends with a blank, which a table loses"):
        table_bytes(make_dataset([("train", " p", *image[2:])]), Path("/images"))
    arrays = Split("train", (), np.zeros((1, 1)), ("p",), pixels=np.zeros((1, 2, 2), np.uint8))
    with pytest.raises(DataError, match="the set holds arrays and no files"):
        table_bytes(Dataset("toy", ("Cough",), arrays, arrays, arrays, "nobody"), Path("/images"))


def test_load_dataset_csv_real_nih_images_by_a_table_agree_with_its_labels(cxr_data: Path, tmp_path: Path) -> None:
    source = cxr_data / "nih_mini"
    with (source / "labels.csv").open() as file:
        rows = list(csv.DictReader(file))
    findings = [name for name in rows[0] if rows[0][name] in ("0", "1") and name[0].isupper()]
    assert len(findings) == 14
    with (tmp_path / "mini.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["path", "split", "patient_id", "age", "sex", "view", "source", *findings])
        for row in rows:
            people = [row[name] for name in ("official_split", "patient_id", "age", "sex", "view", "source")]
            writer.writerow([row["image"].replace(".png", ".jpg"), *people, *(row[name] for name in findings)])
    dataset = load_dataset("csv", source / "images", options={"table": str(tmp_path / "mini.csv")})
    assert (len(dataset.train) + len(dataset.dev), len(dataset.test)) == (1462, 245)
    where = {row["image"].replace(".png", ".jpg"): row for row in rows}
    for split in dataset.splits:
        for index, path in enumerate(split.paths):
            row = where[path.name]
            assert split.labels[index].tolist() == [float(row[name]) for name in findings]
            assert (split.sexes[index], split.views[index], split.sources[index]) == (
                row["sex"],
                row["view"],
                row["source"],
            )
            assert split.ages[index] == float(row["age"])


def test_load_dataset_csv_images_are_decoded_from_where_the_table_lies(tmp_path: Path) -> None:
    from cxr_compress.data import decode_split
    from cxr_compress.device.preprocess import PreprocessSpec

    table = write_table(tmp_path, *make_rows(), images=False)
    for index, row in enumerate(make_rows()):
        draw(tmp_path / row.partition(",")[0], seed=index)
    assert decode_split(load_dataset("csv", table).dev, PreprocessSpec(8, 8)).shape == (12, 8, 8)


CLASS_ROWS = ("a.png,b,x,train", "b.png,a,y,train", "c.png,,z,dev", "d.png,c,u,dev", "e.png,a,v,test", "f.png,c,w,test")


def test_load_dataset_csv_class_column_becomes_classes_that_exclude_one_another(tmp_path: Path) -> None:
    write_table(tmp_path, *CLASS_ROWS, header="path,kind,patient_id,split")
    dataset = read_dataset("csv", tmp_path, options={"class_column": "kind"})
    assert (dataset.findings, dataset.exclusive) == (("a", "b", "c"), True)
    np.testing.assert_array_equal(dataset.train.labels, np.array([[0, 1, 0], [1, 0, 0]], np.float32))
    np.testing.assert_array_equal(dataset.dev.labels, np.array([[math.nan] * 3, [0, 0, 1]], np.float32))
    again = read_dataset("csv", tmp_path, options={"label_column": "kind"})
    np.testing.assert_array_equal(again.train.labels, dataset.train.labels)
    ordered = read_dataset("csv", tmp_path, options={"class_column": "kind", "findings": "c|b|a"})
    np.testing.assert_array_equal(ordered.train.labels, dataset.train.labels[:, ::-1])
    one = read_dataset("csv", tmp_path, options={"class_column": "kind", "findings": "b"})
    assert (one.findings, one.exclusive) == (("b",), False)
    np.testing.assert_array_equal(one.train.labels, np.array([[1], [0]], np.float32))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, r"line 2 of images.csv has 'b' in the column 'kind'; .* give the option label_column=kind\)"),
        ({"class_column": "sort"}, "sort"),
        (
            {"class_column": "kind", "findings": "a|b"},
            r"has the class 'c' in the column 'kind'; expected a, b, or",
        ),
    ],
)
def test_load_dataset_csv_class_names_that_fit_nothing_are_an_error(tmp_path, options, message) -> None:
    write_table(tmp_path, *CLASS_ROWS, header="path,kind,patient_id,split")
    with pytest.raises(DataError, match=message):
        read_dataset("csv", tmp_path, options=options)


@pytest.mark.parametrize("written", ["12366.0", "12366.00"])
def test_load_dataset_csv_patient_that_is_an_integer_written_as_a_float_is_the_same(tmp_path, written) -> None:
    rows = ("x.png,1,0,12366,F,4,PA,train,x", f"y.png,1,0,{written},F,4,PA,test,x")
    write_table(tmp_path, *make_rows(), *rows)
    with pytest.raises(DataError, match=r"csv: 1 patient\(s\) with 2 images are in both train and test"):
        load_dataset("csv", tmp_path)


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ("g.png,A,q,test", "line 8 of images.csv has the class 'A' in the column 'kind', line 3 has 'a'; expected one"),
        ("g.png,NaN,q,test", "line 8 of images.csv has 'NaN' in the column 'kind', which is what other programs write"),
    ],
)
def test_load_dataset_csv_class_in_two_spellings_or_of_nothing_is_refused(tmp_path, row, message) -> None:
    write_table(tmp_path, *CLASS_ROWS, row, header="path,kind,patient_id,split")
    with pytest.raises(DataError, match=message):
        read_dataset("csv", tmp_path, options={"class_column": "kind"})
