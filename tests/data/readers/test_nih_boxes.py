"""The boxes of ChestX-ray14: the header with commas, the alias, and the real file."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest

from cxr_compress.data import NIH_FINDINGS, Box, read_boxes
from cxr_compress.errors import DataError

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
