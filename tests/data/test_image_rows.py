"""Rows with one image each: what they say of it, and what is refused with file and line."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from cxr_compress.data.image_rows import (
    find_table,
    in_folder,
    is_table,
    notes_on_rows,
    read_image_row,
    refuse_backslashes,
)
from cxr_compress.data.readers.base import Request
from cxr_compress.data.table_file import Row
from cxr_compress.errors import DataError
from tests.data.files import draw

COLUMNS = ("path", "patient_id", "sex", "age", "view")


def read(columns=COLUMNS, **cells):
    row = Row({"path": "a.png", "patient_id": "7", **cells}, 3, "t.csv", "images")
    return read_image_row(row, in_folder(Path("root")), path_column="path", columns=columns, labels=(1.0,))


def test_row_says_what_is_known_and_what_was_not_understood():
    record = read(sex="male", age="058Y", view="sideways", patient_id="12.0")
    assert (record.path, record.patient, record.labels) == (Path("root/a.png"), "12", (1.0,))
    assert (record.sex, record.age, record.view, record.source) == ("M", 58.0, "", None)
    assert record.not_understood == ("view",)
    assert read(columns=("path",)).patient == "a.png", "without a column every image is its own patient"


@pytest.mark.parametrize(
    ("cells", "message"),
    [
        ({"path": ""}, "line 3 of t.csv has nothing in the column 'path'"),
        ({"patient_id": ""}, "line 3 of t.csv has no patient_id; expected one for every image"),
        ({"age": "old"}, "line 3 of t.csv has the age 'old'; expected years"),
        ({"age": "5,5"}, "write 5.5 with a decimal point"),
    ],
)
def test_row_that_cannot_be_used_is_named_by_file_and_line(cells, message):
    with pytest.raises(DataError, match=message):
        read(**cells)


def test_image_is_found_with_and_without_its_suffix(tmp_path):
    for name in ("a.png", "b.c.jpg", "plain"):
        (tmp_path / name).touch()
    locate = in_folder(tmp_path)
    assert [locate(cell).name for cell in ("a", "a.png", "b.c", "plain")] == ["a.png", "a.png", "b.c.jpg", "plain"]
    assert locate("gone") == tmp_path / "gone"
    assert locate("a.jpg") == tmp_path / "a.jpg", "another suffix is another file"


def test_table_is_known_by_its_name_and_found_where_it_is_the_only_one(tmp_path):
    (tmp_path / "folder.csv").mkdir()
    assert not is_table(tmp_path / "folder.csv")
    table = tmp_path / "set.tsv.gz"
    table.touch()
    assert is_table(table)
    assert find_table(Request("csv", tmp_path)) == (table, tmp_path)
    assert find_table(Request("csv", tmp_path, options={"table": "set.tsv.gz"})) == (table, tmp_path)
    (tmp_path / "second.csv").touch()
    with pytest.raises(DataError, match=r"expected one .csv in .*, found 2; name the table itself"):
        find_table(Request("csv", tmp_path))
    with pytest.raises(DataError, match=r"expected a table, gone\.csv does not exist"):
        find_table(Request("csv", tmp_path, options={"table": "gone.csv"}))


def test_notes_count_and_quote_nothing(tmp_path):
    for number in range(3):
        draw(tmp_path / f"{number}.png")
    rows = [read(path=str(tmp_path / f"{number}.png"), sex="Jane Doe") for number in range(2)]
    first, second = notes_on_rows(rows)
    assert first == "the sex of 2 of 2 images is taken as unknown; expected F, M, female or male"
    assert second == "1 images beside those of the table are not read: no row names them"


def test_paths_of_windows_are_another_fault_than_missing_images(tmp_path):
    draw(tmp_path / "deep" / "a.png")
    row = read(path=f"{tmp_path}/deep\\a.png")
    with pytest.raises(DataError, match="1 paths of the table are written with backslashes"):
        refuse_backslashes([row], "images")
    refuse_backslashes([read(path="no\\where.png")], "images")
    assert np.isfinite(row.labels[0])
