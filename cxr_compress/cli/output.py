"""Results as table, JSON or CSV on stdout, each with the sentence of intended use."""

from __future__ import annotations

import csv
import json
import math
import sys
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from absl import flags

from cxr_compress.cli.app import UsageError, print_error, printable
from cxr_compress.device.modelinfo import INTENDED_USE
from cxr_compress.errors import CompressionError
from cxr_compress.files import check_writable, special_kind

_HEAD_BYTES = 1024  # of a page, in which it says what made it


def write_results(
    form: str,
    *,
    document: dict[str, Any],
    headers: Sequence[str],
    rows: Sequence[Sequence[Any]],
    heading: str = "",
    intended_use: str = INTENDED_USE,
) -> None:
    """Print results the way --format asks for.

    JSON prints `document` with the key "intended_use" added; table and csv print `headers` and `rows`. The sentence is
    the last line under a table; for csv it goes to stderr, so that stdout stays a plain CSV.

    Args:
        form: "table", "json" or "csv".
        document: JSON-ready; NaN and infinity are printed as null, which JSON has instead.
        headers: of the columns, for csv as they are; for a table "_" becomes a space.
        rows: cells; None prints as empty, floats are shown with 4 digits in a table, in full in csv. Control characters
            of a text are escapes in a table.
        heading: lines above a table.
        intended_use: the sentence.
    """
    if form == "json":
        json.dump(_finite({"intended_use": intended_use, **document}), sys.stdout, indent=2)
        sys.stdout.write("\n")
    elif form == "csv":
        write_csv_rows([headers, *rows], intended_use=intended_use)
    else:
        from tabulate import tabulate

        titles = [header.replace("_", " ") for header in headers]
        # Only numbers are formatted: a file or finding whose name looks like a number must stay as it is.
        table = tabulate(
            [[_cell(cell) for cell in row] for row in rows], titles, disable_numparse=True, colalign=_aligned(rows)
        )
        write_text(f"{heading}\n\n{table}" if heading else table, intended_use=intended_use)


def write_text(text: str, *, intended_use: str = INTENDED_USE) -> None:
    """Print lines for people, control characters as escapes, and the sentence below them."""
    lines = [printable(line) for line in text.split("\n")]
    sys.stdout.write("\n".join([*lines, "", intended_use]) + "\n")


def write_csv_rows(rows: Sequence[Sequence[Any]], intended_use: str | None = None) -> None:
    """Print rows of a CSV at once, so that what is done is seen; the sentence, where given, goes to stderr first."""
    if intended_use is not None:
        sys.stderr.write(f"{intended_use}\n")
    csv.writer(sys.stdout, lineterminator="\n").writerows(rows)
    sys.stdout.flush()


def _cell(cell: Any) -> str:
    """Text of one table cell."""
    if cell is None:
        return ""
    if isinstance(cell, bool):
        return "yes" if cell else "no"
    return f"{cell:.4g}" if isinstance(cell, float) else printable(str(cell))


def _aligned(rows: Sequence[Sequence[Any]]) -> list[str] | None:
    """Right for columns of numbers, left for the others."""
    if not rows:
        return None
    columns = zip(*rows, strict=True)
    return ["right" if all(_is_number(cell) for cell in column) else "left" for column in columns]


def _is_number(cell: Any) -> bool:
    return cell is None or (isinstance(cell, int | float) and not isinstance(cell, bool))


def _finite(value: Any) -> Any:
    """The same JSON value with NaN and infinities as None."""
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


# What people call the formats that a wrong name would be taken for.
_FORMATS = {
    ".onnx": "an ONNX model",
    ".keras": "a Keras model",
    ".h5": "an HDF5 file",
    ".hdf5": "an HDF5 file",
    ".pb": "a TensorFlow graph",
    ".tflite": "a TFLite model",
    ".pt": "a PyTorch file",
    ".pth": "a PyTorch file",
    ".npz": "a NumPy archive",
    ".safetensors": "a safetensors file",
    ".json": "a JSON file",
    ".csv": "a table",
    ".zip": "a ZIP archive",
    ".gz": "a packed file",
    ".xlsx": "a workbook",
    ".png": "a picture",
}


@dataclass(frozen=True)
class Output:
    """One file that a command is told to write.

    Attributes:
        flag: whose value it is.
        path: where it goes.
        suffix: of what is written, such as ".tflite".
        made_before: says of a file that stands there how an earlier call of this command made it, in words such as
            "made from base.keras"; "" where it did not, or where nobody can tell.
    """

    flag: str
    path: Path
    suffix: str
    made_before: Callable[[Path], str]


def define_overwrite_flag(values: flags.FlagValues) -> None:
    """Define the flag of every command that writes a file."""
    text = "Replace files that are there and were not written by this command; a file that is read never is."
    flags.DEFINE_boolean("overwrite", False, text, flag_values=values)


def page_by(generator: str, what: str) -> Callable[[Path], str]:
    """For `Output.made_before`: whether a page's head says that `generator` made it, of `what`."""

    def made_before(path: Path) -> str:
        start = path.read_bytes()[:_HEAD_BYTES]
        named = f'name="generator" content="{generator}"'.encode() in start
        return f"the page of an earlier {what}" if named else ""

    return made_before


def check_outputs(
    name: str, outputs: Iterable[Output], *, inputs: Iterable[str | Path | None], overwrite: bool
) -> None:
    """Refuse what must not be written; say of every file that it will be replaced.

    Args:
        name: of the command.
        outputs: all that it will write.
        inputs: files and folders that it reads; None for those that are not given.
        overwrite: the value of --overwrite.

    Raises:
        UsageError: a wrong suffix, or one file for two things.
        CompressionError: the folder is missing or cannot be written to, or what stands there must stay.
    """
    outputs, read = list(outputs), [Path(path) for path in inputs if path]
    for number, output in enumerate(outputs):
        _check_name(output)
        if other := next((one for one in outputs[:number] if one.path.absolute() == output.path.absolute()), None):
            raise UsageError(f"--{other.flag} and --{output.flag} are both {output.path}: give two names")
        folder = output.path.parent
        if not folder.is_dir():
            raise CompressionError(f"the folder of --{output.flag}, {folder}, does not exist: create it first")
        check_writable(folder)
        _check_place(name, output, read, overwrite=overwrite)


def _check_name(output: Output) -> None:
    """A name without a suffix names no other format."""
    suffix = output.path.suffix.lower()
    if suffix in ("", output.suffix):
        return
    meaning = f", the suffix of {_FORMATS[suffix]}" if suffix in _FORMATS else ""
    raise UsageError(f"expected --{output.flag} to end in {output.suffix}, got {output.path.name!r}{meaning}")


def _check_place(name: str, output: Output, read: Iterable[Path], *, overwrite: bool) -> None:
    """What stands there already."""
    path = output.path
    where = f"--{output.flag} {path}"
    if kind := special_kind(path):
        raise CompressionError(f"{where} is {kind}: give the name of a file")
    if not path.exists():
        if path.is_symlink():
            raise CompressionError(f"{where} is a link to nothing: remove it, or give another name")
        return
    if any(source.exists() and source.samefile(path) for source in read):
        raise CompressionError(f"{where} is a file that this command reads: give another name")
    earlier = output.made_before(path)
    if earlier:
        print_error(name, f"replaces {path}, {earlier}")
        return
    if any(source.is_dir() and path.resolve().is_relative_to(source.resolve()) for source in read):
        raise CompressionError(f"{where} is a file of a folder that this command reads: give another name")
    if not overwrite:
        raise CompressionError(
            f"{where} is there already, and not a file that {name} is known to have written: give another name, or "
            "--overwrite to replace it"
        )
