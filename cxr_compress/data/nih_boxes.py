"""Reads the boxes that radiologists drew around findings on 880 films of NIH ChestX-ray14."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from cxr_compress.data.nih import NIH_FINDINGS
from cxr_compress.data.table_file import Row, read_table
from cxr_compress.errors import DataError

BOX_FILM_SIZE = 1024  # pixels per edge of the films that the boxes were drawn on

# The header is "Image Index,Finding Label,Bbox [x,y,w,h],,,": its commas split the third name in four.
_SIDES = ("Bbox [x", "y", "w", "h]")
_ALIASES = {"Infiltrate": "Infiltration"}


@dataclass(frozen=True)
class Box:
    """A rectangle around one finding, in pixels of the original film of 1024 x 1024.

    Attributes:
        finding: One of ``NIH_FINDINGS``.
        x: Of the left edge.
        y: Of the upper edge.
        width: Along x.
        height: Along y.
    """

    finding: str
    x: float
    y: float
    width: float
    height: float


def read_boxes(path: str | Path) -> dict[str, tuple[Box, ...]]:
    """The boxes of every film that has some, in the order of the file.

    Args:
        path: ``BBox_List_2017.csv`` or ``.csv.gz``.

    Returns:
        Image name -> its boxes.

    Raises:
        DataError: The file cannot be read, or a row is no box of the 14 findings on the film.
    """
    boxes: dict[str, tuple[Box, ...]] = {}
    for row in read_table(Path(path), who="nih", needed=("Image Index", "Finding Label", *_SIDES)).rows:
        boxes[row["Image Index"]] = (*boxes.get(row["Image Index"], ()), _read_box(row))
    if not boxes:
        raise DataError(f"nih: expected boxes in {Path(path).name}, found none; download it again")
    return boxes


def _read_box(row: Row) -> Box:
    """One row, checked."""
    finding = _ALIASES.get(row["Finding Label"], row["Finding Label"])
    if finding not in NIH_FINDINGS:
        raise row.error(f"has the unknown finding {finding!r}; expected one of the 14 of ChestX-ray14")
    try:
        x, y, width, height = (float(row[side]) for side in _SIDES)
    except ValueError as error:
        raise row.error("has a box that is no four numbers; expected x, y, width and height in pixels") from error
    # One pixel of room: some published boxes end a fraction of a pixel beyond the film.
    if not (0 <= x < x + width <= BOX_FILM_SIZE + 1 and 0 <= y < y + height <= BOX_FILM_SIZE + 1):
        raise row.error(f"has a box outside the film of {BOX_FILM_SIZE} x {BOX_FILM_SIZE} pixels")
    return Box(finding, x, y, width, height)
