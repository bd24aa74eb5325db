"""Turn foreign weights into a .keras model of this package.

    cxr_import_weights --from=npz --input_file=weights.npz --output_file=chexnet.keras --num_classes=1

npz: one array per variable of DenseNet121 and its head, named "index|variable name", in the model's order. Every array
has to match in place, name and shape, or nothing is written. The report says what matched. Exit code 2: wrong flag, or
a file that is missing, damaged or made from another network.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from absl import flags

from cxr_compress.cli.common import EXIT_OK, UsageError, run_command
from cxr_compress.cli.output import write_results
from cxr_compress.cli.quiet import quiet_native_stderr

if TYPE_CHECKING:
    from cxr_compress.models.npz_weights import ImportReport

NAME = "cxr_import_weights"
_COLUMNS = ("output_file", "arrays", "parameters", "stored_dtype", "num_classes", "input_size", "file_bytes")


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; `argv` without the program name."""
    return run_command(NAME, __doc__, _define_flags, _run, argv)


def _define_flags(values: flags.FlagValues) -> None:
    """Define the command's own flags."""
    flags.DEFINE_enum("from", "npz", ["npz"], "What kind of file the weights are in.", flag_values=values)
    flags.DEFINE_string("input_file", None, "The weights.", flag_values=values)
    flags.DEFINE_string("output_file", None, "The model to write; ends in .keras.", flag_values=values)
    flags.DEFINE_integer("num_classes", 14, "Findings of the trained head.", lower_bound=1, flag_values=values)
    flags.DEFINE_integer(
        "input_size", 224, "Height and width of the films in pixels; the weights fit any.", flag_values=values
    )


def _run(values: flags.FlagValues, arguments: list[str]) -> int:
    """Import, save and report."""
    if arguments:
        raise UsageError(f"expected flags only, got {arguments[0]!r}")
    for name in ("input_file", "output_file"):
        if not values[name].value:
            raise UsageError(f"expected --{name}=FILE, got none")
    if Path(values.output_file).suffix != ".keras":
        raise UsageError(f"expected an --output_file that ends in .keras, got {values.output_file!r}")
    if not Path(values.input_file).is_file():
        raise UsageError(f"expected --input_file to be a file, got {values.input_file!r}, which is none")
    with quiet_native_stderr(NAME, enabled=not values.debug):
        report = _import(values)
    _print(values, report)
    return EXIT_OK


def _import(values: flags.FlagValues) -> ImportReport:
    """Build the network, fill it and save it."""
    # Here and not above: Keras takes seconds to load, and a wrong flag or --help should not wait for it.
    from cxr_compress.models import chexnet, load_npz_weights, save_model

    model = chexnet(values.num_classes, (values.input_size, values.input_size, 3))
    report = load_npz_weights(model, values.input_file)
    save_model(model, values.output_file)
    return report


def _print(values: flags.FlagValues, report: ImportReport) -> None:
    """Print what matched and what was written."""
    content = Path(values.output_file).read_bytes()
    entry: dict[str, Any] = {
        "output_file": values.output_file,
        "arrays": report.arrays,
        "parameters": report.parameters,
        "stored_dtype": report.stored_dtype,
        "num_classes": values.num_classes,
        "input_size": values.input_size,
        "file_bytes": len(content),
    }
    document = {**entry, "renamed": report.renamed, "sha256": hashlib.sha256(content).hexdigest()}
    write_results(values.format, document=document, headers=_COLUMNS, rows=[[entry[name] for name in _COLUMNS]])
