"""What all readers share: registering, ages, sexes, views, options, and tables whose errors name file and line."""

from __future__ import annotations

import gzip
import math
from pathlib import Path

import numpy as np
import pytest

from cxr_compress.data import DATASETS, load_dataset
from cxr_compress.data.dataset import Dataset
from cxr_compress.data.readers.base import (
    ImageRecord,
    Missing,
    Request,
    keep_existing,
    make_split,
    parse_age,
    parse_sex,
    parse_view,
    read_dataset,
    register_reader,
)
from cxr_compress.data.splits import Split
from cxr_compress.data.table_file import read_table
from cxr_compress.errors import CompressionError, DataError


@pytest.mark.parametrize(
    ("text", "years"),
    [
        ("58", 58),
        ("058Y", 58),
        ("58.5", 58.5),
        (" 7y ", 7),
        ("006M", 0.5),
        ("026W", 0.498),
        ("730D", 2.0),
        ("0", 0),
        ("110", 110),
        ("", math.nan),
        ("414", math.nan),
        ("148Y", math.nan),
        ("-1", math.nan),
        ("nan", math.nan),
        ("inf", math.nan),
    ],
)
def test_parse_age_each_spelling(text: str, years: float) -> None:
    # Half a day: weeks and days do not divide a year evenly.
    np.testing.assert_allclose(parse_age(text), years, atol=0.5 / 365)


@pytest.mark.parametrize("text", ["old", "Y", "5 8", "58YY", "0x3A"])
def test_parse_age_what_is_no_age_is_an_error(text: str) -> None:
    with pytest.raises(ValueError, match="could not convert"):
        parse_age(text)


def test_parse_sex_and_view_each_spelling() -> None:
    assert [parse_sex(text) for text in ("F", "female", " M", "Male", "", "Unknown", "O")] == [
        "F",
        "F",
        "M",
        "M",
        "",
        "",
        "",
    ]
    assert [parse_view(text) for text in ("PA", "ap", "LL", "RL", "Lateral", "lat", "", "oblique")] == [
        *("PA", "AP", "L", "L", "L", "L", "", ""),
    ]


def test_request_options_as_values_or_as_text_mean_the_same() -> None:
    request = Request(
        "toy", Path(), options={"a": True, "b": "no", "c": "0.25", "d": 3, "e": "x|y, z", "f": ["x", "y, z"]}
    )
    assert (request.flag("a"), request.flag("b"), request.flag("none", True)) == (True, False, True)
    assert (request.number("c", 0), request.number("d", 0), request.number("none", 7)) == (0.25, 3, 7)
    assert request.names("e") == request.names("f") == ("x", "y, z")
    assert request.names("none") == ()
    with pytest.raises(DataError, match=r"expected the option e to be one of x, y; got 'x\|y, z'"):
        request.text("e", choices=("x", "y"))


def read_toy(request: Request) -> Dataset:
    """Two images of two patients in each part; the option says what the first has."""

    def part(name: str) -> Split:
        paths = [request.folder / f"{name}{number}.png" for number in range(2)]
        labels = [(request.number("first", 1),), (0.0,)]
        records = [ImageRecord(path, path.stem, label) for path, label in zip(paths, labels, strict=True)]
        kept, _ = keep_existing(request, {name: records}, lambda path: "1" not in path.name)
        return make_split(name, kept[name], ("Cough",))

    return Dataset(request.name, ("Cough",), part("train"), part("dev"), part("test"), "nobody")


@pytest.fixture
def registered(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("toy", "listed"):  # restores the table afterwards
        monkeypatch.setitem(DATASETS, name, None)
        del DATASETS[name]


def test_registered_reader_is_a_data_set_like_any_other(tmp_path: Path, registered: None) -> None:
    options = {"first": "label of the first image"}
    assert register_reader("listed", help="a toy", options=options, lists_images=True)(read_toy) is read_toy
    assert list(DATASETS["listed"].options) == ["first", "allow_one_class"]
    with pytest.raises(DataError, match=r"listed: 1 of 2 train images are missing in .*; complete the download"):
        load_dataset("listed", tmp_path)
    with pytest.raises(DataError, match="listed: expected images with and without 'Cough' in train"):
        load_dataset("listed", tmp_path, allow_missing=True)
    dataset = read_dataset("listed", tmp_path, options={"first": "0.5", "allow_one_class": "yes"}, missing=Missing.KEEP)
    assert (dataset.train.labels.tolist(), dataset.allow_one_class) == ([[0.5], [0.0]], True)
    with pytest.raises(DataError, match="listed: unknown option 'c'; it knows allow_one_class, first"):
        load_dataset("listed", tmp_path, options={"first": 1, "c": 2})
    with pytest.raises(DataError, match=r"expected a data set of chexpert, csv, .*, listed; got 'toy'"):
        load_dataset("toy", tmp_path)
    register_reader("toy", help="a toy without a list")(read_toy)
    with pytest.raises(DataError, match=r"allow_missing is for sets with .* \(.*listed\); toy has none"):
        load_dataset("toy", tmp_path, allow_missing=True)
    with pytest.raises(DataError, match=r"toy: expected a folder, .*none does not exist or is not one"):
        load_dataset("toy", tmp_path / "none")


def test_name_registered_twice_is_refused_with_both_readers() -> None:
    words = (
        r"'nih' has a reader already \(cxr_compress.data.readers.nih.read_nih\): register .*read_toy under another name"
    )
    with pytest.raises(CompressionError, match=words):
        register_reader("nih", help="mine")(read_toy)
    assert DATASETS["nih"].read is not read_toy


def test_read_table_rows_have_lines_of_the_file_and_missing_cells_are_empty(tmp_path: Path) -> None:
    path = tmp_path / "t.csv"
    path.write_bytes(b'\xef\xbb\xbfa, b ,\r\n1,"two\nlines",\r\n\r\n3\r\n')
    table = read_table(path, who="toy", needed=("a",))
    assert table.columns == ("a", "b")
    rows = list(table.rows)
    assert [(row.line, row["a"], row["b"], row.get("c")) for row in rows] == [
        (3, "1", "two\nlines", ""),
        (5, "3", "", ""),
    ]
    assert str(rows[1].error("is bad")) == "toy: line 5 of t.csv is bad"
    # A published table whose last line a download cut: an empty label would pass for "not mentioned".
    with pytest.raises(
        DataError, match=r"line 5 of t.csv ends after 1 cells, expected at least 2; the file may be cut"
    ):
        list(read_table(path, who="toy", needed=("a", "b")).rows)


def test_read_table_damaged_files_are_one_clear_line(tmp_path: Path) -> None:
    path = tmp_path / "t.csv.gz"
    whole = gzip.compress(b"a,b\n" + b"1,2\n" * 1000)
    for content in (whole[: len(whole) // 2], whole[:10] + b"\x00" * 10 + whole[20:], b"a,b\n1,2\n"):
        path.write_bytes(content)
        with pytest.raises(DataError, match=r"^toy: t.csv.gz cannot be read \(.*\); download it again$"):
            read_table(path, who="toy")
    with pytest.raises(DataError, match=r"none.csv cannot be read \(No such file or directory\)"):
        read_table(tmp_path / "none.csv", who="toy")
