"""Check that model files answer on this machine as they did where they were made.

    cxr_verify --model=model.tflite
    cxr_verify --model=a.tflite,b.tflite --runtime=tflite-runtime

Every file of cxr_compress carries what it answered to a few images that are drawn from a seed; here they are drawn and
answered again. Run it once on each device before it is used: it sees a runtime, a processor or a delegate that computes
a model wrong, which the file's own hashes cannot. It says nothing about how good the model is.

Exit code 0: every file answers as recorded. 1: a file could not be read or run; the others were checked. 2: wrong flag,
or none of the files could be checked. 3: a file answers otherwise: do not use it here.
"""

from __future__ import annotations

from collections.abc import Sequence

from absl import flags

from cxr_compress.cli.app import EXIT_GATE, EXIT_OK, EXIT_SOME_INPUTS_BAD, print_error, run_command
from cxr_compress.cli.device_flags import (
    check_model_list,
    define_model_list_flag,
    define_runtime_flags,
    runtime_options,
)
from cxr_compress.cli.output import write_results
from cxr_compress.device.modelinfo import INTENDED_USE
from cxr_compress.device.verify import Verification, verify_model
from cxr_compress.errors import CompressionError

NAME = "cxr_verify"
_COLUMNS = (
    *("model", "verdict", "runtime", "images", "largest_difference", "tolerance"),
    *("decisions", "flipped", "too_close"),
)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; `argv` without the program name."""
    return run_command(NAME, __doc__, _define_flags, _run, argv)


def _define_flags(values: flags.FlagValues) -> None:
    """Define the command's own flags."""
    define_model_list_flag(values)
    define_runtime_flags(values)


def _run(values: flags.FlagValues, arguments: list[str]) -> int:
    """Check one file after the other."""
    check_model_list(values, arguments, "check")
    verified: dict[str, Verification] = {}
    errors: dict[str, str] = {}
    for path in values.model:
        try:
            verified[path] = verify_model(path, **runtime_options(values))
        except CompressionError as error:
            if len(values.model) == 1:
                raise
            errors[path] = str(error)
            print_error(NAME, str(error))
    if not verified:
        raise CompressionError(f"none of the {len(errors)} files could be checked")
    _print(values.format, verified, errors)
    if not all(one.passed for one in verified.values()):
        return EXIT_GATE
    return EXIT_SOME_INPUTS_BAD if errors else EXIT_OK


def _print(form: str, verified: dict[str, Verification], errors: dict[str, str]) -> None:
    """A row for each file; what failed is said in words too."""
    document = {
        "models": [{"model": path, **one.to_dict()} for path, one in verified.items()],
        "errors": [{"model": path, "error": text} for path, text in errors.items()],
    }
    rows = [
        [path, "passed" if one.passed else "FAILED", *(getattr(one, name) for name in _COLUMNS[2:])]
        for path, one in verified.items()
    ]
    write_results(form, document=document, headers=_COLUMNS, rows=rows, intended_use=INTENDED_USE)
    for path, one in verified.items():
        if not one.passed:
            print_error(NAME, f"{path}: {one.to_text()}")
