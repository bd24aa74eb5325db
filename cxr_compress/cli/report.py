"""Write again what people read of a run: README.md, model card, picture, and the page for people who decide.

    cxr_report run
    cxr_report run --html=for_the_committee.html

cxr_compress writes all of it at its end; this makes it anew of report.json, plan.json and the manifests in the run's
folder, for instance after an upgrade, or where matplotlib and jinja2 (extra `report`) were missing. Nothing is scored
again. The page needs no network and prints on A4.

Exit codes: 0 done, 2 wrong flag, no finished run, or a file that is not the one the report is of.

Research use only; not a medical device and not a diagnosis.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from absl import flags

from cxr_compress.cli.app import EXIT_OK, UsageError, run_command
from cxr_compress.cli.output import Output, check_outputs, define_overwrite_flag, page_by, write_text
from cxr_compress.device.modelfile import ModelFile, read_model
from cxr_compress.errors import DataError
from cxr_compress.files import write_text as write_text_file
from cxr_compress.report import read_report
from cxr_compress.report.run_folder import PAGE, REPORT, render_page_of_run, write_run_folder
from cxr_compress.report.run_page import GENERATOR

NAME = "cxr_report"


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; `argv` without the program name."""
    return run_command(NAME, __doc__, _define_flags, _run, argv)


def _define_flags(values: flags.FlagValues) -> None:
    """Define the command's own flags."""
    text = "Write only the page, as this file; needs the extra `report`."
    flags.DEFINE_string("html", None, text, flag_values=values)
    define_overwrite_flag(values)


def _run(values: flags.FlagValues, arguments: list[str]) -> int:
    """Read the run, write, say what was written."""
    if len(arguments) != 1:
        raise UsageError(f"expected the folder of one run, got {len(arguments)} arguments: cxr_report RUN_DIR")
    folder = Path(arguments[0])
    if not folder.is_dir():
        raise UsageError(f"expected the folder of a run, {str(folder)!r} is none")
    if not (folder / REPORT).is_file():
        raise DataError(f"{folder} holds no {REPORT}: the run is not finished; run its cxr_compress command again")
    report = _read(folder / REPORT)
    model = _compressed(folder, report["rows"], report["facts"]["sha256"])
    if values.html:
        page = Path(values.html)
        inputs = [folder / REPORT, *(folder / row["file"] for row in report["rows"])]
        check_outputs(
            NAME, [Output("html", page, ".html", page_by(GENERATOR, "run"))], inputs=inputs, overwrite=values.overwrite
        )
        write_text_file(page, render_page_of_run(folder, report, model))
        write_text(f"wrote {page}")
        return EXIT_OK
    written = write_run_folder(folder, report, model)
    missing = "" if PAGE in written else f"\nno {PAGE}: it needs pip install 'cxr-compress[report]'"
    write_text(f"wrote {', '.join(written)} in {folder}{missing}")
    return EXIT_OK


def _read(path: Path) -> dict[str, Any]:
    """The report, with all that a finished run has put into it."""
    report = read_report(path)
    facts, rows = report.get("facts"), report["rows"]
    known = isinstance(facts, dict) and {"recipe", "sha256", "gate"} <= set(facts) and "dataset" in report
    if not known or not all(isinstance(row, dict) and {"name", "file"} <= set(row) for row in rows):
        raise DataError(f"{path} is not the report of a whole run: run its cxr_compress command again")
    return report


def _compressed(folder: Path, rows: Sequence[dict[str, object]], digests: dict[str, str]) -> ModelFile:
    """The compressed file, which has to be the one that was scored."""
    if not rows:
        raise DataError(f"{folder / REPORT} names no file: give the folder of a finished run")
    path = folder / str(rows[-1]["file"])
    if not path.is_file():
        raise DataError(f"{path.name}, which {REPORT} is of, is not in {folder}: give the folder as the run left it")
    model = read_model(path)
    # Hashes are in the order of the rows: the last is that of the compressed file.
    if model.sha256 not in list(digests.values())[-1:]:
        raise DataError(f"{path.name} is not the file that was scored (sha256 {model.sha256}): run cxr_compress again")
    return model
