"""Tables as spreadsheets write them: separators, encodings, `sep=`, and columns under other spellings."""

from __future__ import annotations

import codecs
import csv
import gzip
import io
from pathlib import Path

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from cxr_compress.data.readers.base import Missing, read_dataset
from cxr_compress.data.table_file import column_key, read_table
from cxr_compress.errors import DataError

HEADER = ["path", "patient_id", "Cough", "split"]
ROWS = [[f"{image}.png", f"p{image}", str(image % 2), part] for image in range(4) for part in ("train", "dev", "test")]
ROWS = [[f"{number}{row[0]}", f"{row[1]}{row[3]}", *row[2:]] for number, row in enumerate(ROWS)]
ENCODINGS = ["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-16-be", "utf-32"]
_MARKS = {"utf-16-le": codecs.BOM_UTF16_LE, "utf-16-be": codecs.BOM_UTF16_BE}


def encode(text: str, encoding: str = "utf-8") -> bytes:
    return _MARKS.get(encoding, b"") + text.encode(encoding)


def to_text(rows: list[list[str]], separator: str, end: str = "\r\n") -> str:
    text = io.StringIO()
    csv.writer(text, delimiter=separator, lineterminator=end).writerows(rows)
    return text.getvalue()


COMMA = to_text([HEADER, *ROWS], ",")


def read(content: bytes, folder: Path, name: str = "labels.csv"):
    (folder / name).write_bytes(content)
    return read_dataset("csv", folder / name, missing=Missing.KEEP)


def patients(dataset) -> list[list[str]]:
    return [sorted(split.patients) for split in dataset.splits]


cells = st.text(
    st.characters(blacklist_categories=("Cs", "Cc"), blacklist_characters="\x00\ufeff\x85\u2028\u2029"), max_size=6
).map(str.strip)


@given(
    st.lists(cells.filter(column_key), min_size=1, max_size=4, unique_by=column_key),
    st.lists(st.lists(cells, min_size=4, max_size=4), max_size=5),
    st.sampled_from(",;\t"),
    st.sampled_from(ENCODINGS),
    st.sampled_from(["\n", "\r\n", "\r"]),
    st.sampled_from(["", "sep"]),
    st.booleans(),
)
def test_read_table_any_separator_encoding_and_line_end_give_the_same_cells(
    tmp_path_factory, names, rows, separator, encoding, end, sep, packed
) -> None:
    names = ["path", *names]
    assume(column_key("path") not in {column_key(name) for name in names[1:]})
    rows = [[f"{index}.png", *row][: len(names)] for index, row in enumerate(rows)]
    text = to_text([names, *rows], separator, end)
    text = f"sep={separator}{end}{text}" if sep else text
    content = encode(text, encoding)
    path = tmp_path_factory.mktemp("t") / ("t.csv.gz" if packed else "t.csv")
    path.write_bytes(gzip.compress(content) if packed else content)
    table = read_table(path, who="toy", needed=("path",), exact=True)
    assert table.columns == tuple(names)
    got = [(row.line, [row[name] for name in names]) for row in table.rows]
    assert got == [(number, row) for number, row in enumerate(rows, 3 if sep else 2)]


spellings = st.tuples(
    st.sampled_from([str.lower, str.upper, str.title, str.capitalize]), st.sampled_from(["_", " ", "-", ".", "", "  "])
)


@given(spellings, spellings, st.sampled_from(",;\t"), st.sampled_from(ENCODINGS))
def test_load_dataset_csv_any_spelling_of_a_column_is_taken_and_said(
    tmp_path_factory, one, two, separator, encoding
) -> None:
    patient, split = one[0](one[1].join(("patient", "id"))), two[0]("split")
    content = encode(to_text([["path", patient, "Cough", split], *ROWS], separator), encoding)
    dataset = read(content, tmp_path_factory.mktemp("t"))
    assert patients(dataset) == [sorted(row[1] for row in ROWS if row[3] == part) for part in ("train", "dev", "test")]
    assert dataset.findings == ("Cough",)
    told = " ".join(dataset.notes)
    assert (f"{patient!r} as patient_id" in told) is (patient != "patient_id")
    assert (f"{split!r} as split" in told) is (split != "split")
    assert "has no" not in told
    assert "no column" not in told


@pytest.mark.parametrize(
    ("header", "taken"),
    [
        ("patientId", "'patientId' as patient_id"),
        ("Patient ID", "'Patient ID' as patient_id"),
        ("LesionID", "'LesionID' as lesion_id"),
    ],
)
def test_load_dataset_csv_a_person_is_found_under_each_usual_name(tmp_path: Path, header: str, taken: str) -> None:
    dataset = read(encode(to_text([["Image Path", header, "Cough", "Split"], *ROWS], ";")), tmp_path)
    assert dataset.notes[0] == (
        f"columns of labels.csv are taken by another spelling: 'Image Path' as path, {taken}, 'Split' as split"
    )
    assert dataset.notes[1:] == ("the cells of labels.csv are taken as separated by semicolons",)


def test_load_dataset_csv_sex_age_and_view_are_taken_and_what_is_not_understood_is_counted(tmp_path: Path) -> None:
    rows = [[*row, *more] for row, more in zip(ROWS, [["F", "40", "PA"], ["W", "200", "oblique"]] * 6, strict=True)]
    dataset = read(encode(to_text([[*HEADER, "Patient Gender", "Patient Age", "View Position"], *rows], ",")), tmp_path)
    assert dataset.findings == ("Cough",)
    assert {*(dataset.train.sexes or ())} == {"F", ""}
    assert {*(dataset.train.views or ())} == {"PA", ""}
    assert "'Patient Gender' as sex, 'Patient Age' as age, 'View Position' as view" in dataset.notes[0]
    assert dataset.notes[1:] == (
        "the sex of 6 of 12 images is taken as unknown; expected F, M, female or male",
        "the age of 6 of 12 images is taken as unknown; expected years from 0 to 110",
        "the view of 6 of 12 images is taken as unknown; expected PA, AP, L, LL, RL or lateral",
    )


def test_load_dataset_csv_an_index_column_without_a_name_is_said_to_be_left_out(tmp_path: Path) -> None:
    rows = [["", *HEADER], *([str(number), *row] for number, row in enumerate(ROWS))]
    dataset = read(encode(to_text(rows, ",")), tmp_path)
    assert dataset.notes == ("column 1 of labels.csv has no name and is not read",)


def test_load_dataset_csv_images_that_no_row_names_are_counted(tmp_path: Path) -> None:
    for name in [row[0] for row in ROWS] + ["other.png", "sub/more.DCM", ".hidden.png", "notes.txt"]:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"")
    assert read(encode(COMMA), tmp_path).notes == (
        "1 images beside those of the table are not read: no row names them",
    )


def test_load_dataset_csv_rows_of_nothing_and_a_tsv_in_a_folder_are_no_trouble(tmp_path: Path) -> None:
    content = encode(to_text([HEADER, *ROWS, ["", "", "", ""]], "\t"), "utf-16")
    (tmp_path / "labels.tsv").write_bytes(content)
    dataset = read_dataset("csv", tmp_path, missing=Missing.KEEP)
    assert sum(map(len, dataset.splits)) == len(ROWS)
    assert dataset.notes == (
        "the cells of labels.tsv are taken as separated by tabs",
        "labels.tsv is read as UTF-16",
    )


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (
            encode(COMMA.replace("patient_id", "Patient_ID,patientId")),
            "'Patient_ID' and 'patientId', which may both",
        ),
        (
            encode(COMMA.replace("path", "Image Path,FilePath")),
            "'Image Path' and 'FilePath', which may both be",
        ),
        (
            encode(COMMA.replace("p0train", "Müller"), "cp1252"),
            r"is not UTF-8 \(byte 0xfc in line 2\), perhaps W",
        ),
        (encode(COMMA)[:40] + b"\0" + encode(COMMA)[40:], "has a NUL character in line 2"),
        (
            COMMA.encode("utf-16-le"),
            "has a NUL character in line 1: it is damaged, no text, or UTF-16",
        ),
        (COMMA.encode("utf-16")[:-1], "starts as utf-16 but is cut short or damaged"),
        (b"PK\x03\x04rest", r"is a workbook \(.xlsx or .ods\) or another ZIP archive, expected a text table"),
        (b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1rest", r"is an old Excel workbook \(.xls\)"),
        (b"PAR1rest", "is a Parquet file, expected a text table"),
        (encode("sep=:\n" + COMMA), r"says sep=:; expected a comma, a semicolon, a tab or a vertical bar"),
        (encode("a,path;x\n"), "may be separated by commas or semicolons; say which"),
        (encode("a,b\n"), r"expected the column\(s\) path in labels.csv, the header lacks them"),
        (encode(to_text([HEADER, *ROWS], "|")), r"expected the column\(s\) path .*separated by commas"),
        (encode(to_text([HEADER, ["a.png", "p", "0,5", "train"]], ";")), "has '0,5' in .*; write 0.5 with a"),
        (encode("path;age;Cough\na.png;61,5;1\n"), "has the age '61,5'; expected years; write 61.5 with a decimal"),
        (
            encode(to_text([HEADER, [*ROWS[0], "x"]], ";")),
            "has 5 cells, expected 4 as in the header; quote cells",
        ),
        (encode("path,Cough,Cough\n"), "the column 'Cough' is there twice"),
        (encode('path;Cough\n"a;1\n'), r"cannot be read \(unexpected end of data, line 2\); a quote may be left open"),
        (
            encode(COMMA.replace(",train", ",holdout")),
            "line 2 of labels.csv has the split 'holdout'; expected train",
        ),
    ],
)
def test_load_dataset_csv_what_would_have_to_be_guessed_is_one_clear_line(
    tmp_path: Path, content: bytes, message: str
) -> None:
    with pytest.raises(DataError, match=f"^csv: .*{message}") as caught:
        read(content, tmp_path)
    assert "\n" not in str(caught.value)


def test_read_table_two_separators_in_a_header_are_told_apart_or_refused(tmp_path: Path) -> None:
    path = tmp_path / "t.csv"
    path.write_text("a,b;c\n1,2;3\n4,5;6\n7,8\n")
    # By the column that is looked for, else by what divides all rows evenly; where both do, it is asked for.
    assert read_table(path, who="toy", needed=("c",)).columns == ("a,b", "c")
    assert read_table(path, who="toy").columns == ("a", "b;c")
    path.write_text("a,b;c\n1,2;3\n")
    with pytest.raises(DataError, match="may be separated by commas or semicolons; say which with a first line"):
        read_table(path, who="toy")
    path.write_text("SEP=;\na,b;c\n1,2;3\n")
    assert read_table(path, who="toy").columns == ("a,b", "c")
    path.write_text("sep=|\na|b\n1|2\n")
    (row,) = read_table(path, who="toy").rows
    assert (row.line, row["b"]) == (3, "2")


def test_load_dataset_csv_paths_of_windows_are_called_by_name(tmp_path: Path) -> None:
    (tmp_path / "images").mkdir()
    (tmp_path / "images" / "a.png").write_bytes(b"")
    (tmp_path / "labels.csv").write_text("path,Cough\nimages\\a.png,1\n")
    with pytest.raises(DataError, match="csv: 1 paths of the table are written with backslashes; write them"):
        read_dataset("csv", tmp_path / "labels.csv")
