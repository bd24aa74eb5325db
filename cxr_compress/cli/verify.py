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
from typing import Any

from absl import flags

from cxr_compress.cli.app import EXIT_GATE, EXIT_OK, EXIT_SOME_INPUTS_BAD, UsageError, print_error, run_command
from cxr_compress.cli.device_flags import define_delegate_flag
from cxr_compress.cli.output import write_results
from cxr_compress.device.interpreter import RUNTIMES
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
    flags.DEFINE_list("model", None, "One or more .tflite files, separated by commas.", flag_values=values)
    flags.DEFINE_integer("num_threads", 1, "Threads of the model.", lower_bound=1, flag_values=values)
    flags.DEFINE_enum("runtime", "auto", RUNTIMES, "Which TFLite runtime to use.", flag_values=values)
    define_delegate_flag(values)


def _run(values: flags.FlagValues, arguments: list[str]) -> int:
    """Check one file after the other."""
    if not values.model:
        raise UsageError("expected --model=FILE[,FILE...], the .tflite files to check")
    if arguments:
        raise UsageError(f"expected no argument, got {arguments[0]!r}; several models go into --model, with commas")
    options: dict[str, Any] = {name: values[name].value for name in ("num_threads", "runtime", "delegate")}
    found: dict[str, Verification] = {}
    errors: dict[str, str] = {}
    for path in values.model:
        try:
            found[path] = verify_model(path, **options)
        except CompressionError as error:
            if len(values.model) == 1:
                raise
            errors[path] = str(error)
            print_error(NAME, str(error))
    if not found:
        raise CompressionError(f"none of the {len(errors)} files could be checked")
    _print(values.format, found, errors)
    if not all(one.passed for one in found.values()):
        return EXIT_GATE
    return EXIT_SOME_INPUTS_BAD if errors else EXIT_OK


def _print(form: str, found: dict[str, Verification], errors: dict[str, str]) -> None:
    """A row for each file; what failed is said in words too."""
    document = {
        "models": [{"model": path, **one.to_dict()} for path, one in found.items()],
        "errors": [{"model": path, "error": text} for path, text in errors.items()],
    }
    rows = [
        [path, "passed" if one.passed else "FAILED", *(getattr(one, name) for name in _COLUMNS[2:])]
        for path, one in found.items()
    ]
    write_results(form, document=document, headers=_COLUMNS, rows=rows, intended_use=INTENDED_USE)
    for path, one in found.items():
        if not one.passed:
            print_error(NAME, f"{path}: {one.to_text()}")
