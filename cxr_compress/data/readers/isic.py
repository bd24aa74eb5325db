"""Reads dermoscopic images of one class each, in the tables of the ISIC archive, its challenges and HAM10000."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from cxr_compress.data.dataset import Dataset
from cxr_compress.data.image_rows import (
    OTHER_NAMES,
    OWN_PATIENT,
    OWN_SPLIT,
    PATIENT_COLUMNS,
    RESERVED,
    class_labels,
    class_names,
    find_table,
    make_parts,
    notes_on_columns,
    notes_on_rows,
    one_row_an_image,
    read_image_row,
)
from cxr_compress.data.readers.base import Request, keep_existing, register_reader
from cxr_compress.data.table_file import Row, column_key, read_cells, read_table
from cxr_compress.device.decode import IMAGE_SUFFIXES
from cxr_compress.errors import DataError

_IMAGE = "image"
_OTHER_NAMES_OF_IMAGE = ("imageid", "isicid", "imagename", "filename", "path")
_TWO = 2
_LABEL_COLUMNS = ("dx", "label", "diagnosis")
_ATTRIBUTION = "not given: say whose data this is with the option attribution (ISIC archive; HAM10000: Tschandl et al.)"
# Of the public sets; goes with the attribution into every report, model file and card.
_POPULATION = "light skin alone, as far as seen: a model of it must not be used on dark skin"


@register_reader(
    "isic",
    help="dermoscopic images of one class each (ISIC, HAM10000), from a table of image names and classes",
    options={
        "table": "the table, where data_dir is only the folder of the images",
        "label_column": f"column that names the class of each image; {', '.join(_LABEL_COLUMNS)} unless given",
        "findings": "the classes in their order, joined by |; all that the column names, sorted, unless given",
        "color": "rgb (unless given) or gray: what the images are",
        "test_fraction": "share of the lesions for test in tables without a column split, 0.2 unless given",
        "attribution": "whose data this is, for reports and model files",
        "population": "whose skin the images show, for them too; light skin, as in the public sets, unless given",
    },
    lists_images=True,
)
def read_isic(request: Request) -> Dataset:
    """A set from a table `image|image_id|isic_id,dx|label[,patient_id|lesion_id,sex,age,split,source]`.

    `data_dir` is the table or a folder with exactly one; images lie in that folder or in any below it
    (`HAM10000_images_part_1`) and are found by name, with or without the suffix that the table gives them. The classes
    exclude one another. A lesion is never in two splits; an image that names none is a lesion of its own. Other columns
    (`dx_type`, one for each class) are not read, and the notes name them.

    Raises:
        DataError: no table, a column missing, a class in two spellings or one alone, a row that cannot be used (with
            file and line), images missing.
    """
    path, root = find_table(request)
    column = _label_column(path, request)
    table = read_table(
        path,
        who=request.name,
        needed=(_IMAGE, column),
        optional=[name for name in RESERVED if column_key(name) != column_key(column)],
        other_names={**OTHER_NAMES, _IMAGE: _OTHER_NAMES_OF_IMAGE},
        exact=True,
    )
    rows, columns = list(table.rows), table.columns
    found = class_names(rows, column, who=request.name, option="label_column")
    classes = request.names("findings") or found
    if len(classes) < _TWO:
        raise DataError(
            f"{request.name}: expected two classes or more, got {', '.join(classes) or 'none'} (for one class against "
            "all others use --dataset=csv with label_column and findings)"
        )
    locate = _in_any_folder(root)
    records = [
        read_image_row(
            row,
            locate,
            path_column=_IMAGE,
            columns=_without_empty_patient(row, columns),
            labels=class_labels(row, column, classes),
        )
        for row in rows
    ]
    kept = keep_existing(request, {"listed": one_row_an_image(rows, records, _IMAGE)})[0]["listed"]
    patient = [name for name in PATIENT_COLUMNS if name in columns]
    return Dataset(
        "isic",
        classes,
        *make_parts(kept, classes, request, has_split="split" in columns),
        f"{request.text('attribution', _ATTRIBUTION)}; {request.text('population', _POPULATION)}",
        notes=(
            f"{len(classes)} classes from the column {column!r}: {', '.join(classes)}",
            *table.notes,
            *notes_on_columns(columns, [_IMAGE, column, *RESERVED]),
            *_notes_on_patients(rows, patient),
            *notes_on_rows(kept),
            *([] if patient else [OWN_PATIENT]),
            *([] if "split" in columns else [OWN_SPLIT]),
        ),
        patient_key=f"the column {patient[0]!r}" if patient else "the path, for want of a lesion_id",
        color=request.text("color", "rgb", ("gray", "rgb")),
        exclusive=True,
    )


def _label_column(path: Path, request: Request) -> str:
    """The column of classes: the one that the user names, else the first usual one that the table has."""
    if named := request.text("label_column"):
        return named

    def usual_in(header: Sequence[str]) -> list[str]:
        return [name for name in _LABEL_COLUMNS if name in map(column_key, header)]

    usual = usual_in(read_cells(path, who=request.name, fits=lambda header: bool(usual_in(header))).header)
    if not usual:
        raise DataError(
            f"{request.name}: expected a column of classes in {path.name}, {' or '.join(_LABEL_COLUMNS)}; name another "
            "one with the option label_column"
        )
    return usual[0]


def _in_any_folder(root: Path) -> Callable[[str], Path]:
    """Where the image of a cell lies: by its name, with or without suffix, in a folder or in those below it."""
    files = [path for path in sorted(root.rglob("*")) if path.suffix.lower() in IMAGE_SUFFIXES]
    # The first of several is taken: archives of HAM10000 hold some folders twice.
    by_name = {key: path for path in reversed(files) for key in (path.stem, path.name)}

    def locate(cell: str) -> Path:
        path = root / cell
        if path.is_file():
            return path
        return by_name.get(path.name) or by_name.get(path.stem, path)

    return locate


def _without_empty_patient(row: Row, columns: Sequence[str]) -> Sequence[str]:
    """The columns of a row, those of patients left out where it fills none of them."""
    if any(row.get(name) for name in PATIENT_COLUMNS):
        return columns
    return [name for name in columns if name not in PATIENT_COLUMNS]


def _notes_on_patients(rows: Sequence[Row], patient: Sequence[str]) -> Iterator[str]:
    """A note on images of which nobody knows whose they are, in a table that knows it of others."""
    count = sum(not any(row[name] for name in patient) for row in rows) if patient else 0
    if count:
        yield f"{count} of {len(rows)} images have no {' and no '.join(patient)}: each counts as one of its own"
