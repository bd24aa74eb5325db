"""What all readers share: ages, sexes, views, options, and tables whose errors name file and line."""

from __future__ import annotations

import gzip
import math
from pathlib import Path

import numpy as np
import pytest

from cxr_compress.data.readers.base import (
    Request,
    check_options,
    parse_age,
    parse_sex,
    parse_view,
)
from cxr_compress.data.table_file import read_table
from cxr_compress.errors import DataError


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
    request = Request(Path(), options={"a": True, "b": "no", "c": "0.25", "d": 3, "e": "x|y, z", "f": ["x", "y, z"]})
    assert (request.flag("a"), request.flag("b"), request.flag("none", True)) == (True, False, True)
    assert (request.number("c", 0), request.number("d", 0), request.number("none", 7)) == (0.25, 3, 7)
    assert request.names("e") == request.names("f") == ("x", "y, z")
    assert request.names("none") == ()
    with pytest.raises(DataError, match=r"expected the option e to be one of x, y; got 'x\|y, z'"):
        request.text("e", choices=("x", "y"))


def test_check_options_names_what_is_known() -> None:
    check_options("nih", {"a": 1}, ("a", "b"))
    with pytest.raises(DataError, match="nih: unknown option 'c'; it knows a, b"):
        check_options("nih", {"a": 1, "c": 2}, ("b", "a"))


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
