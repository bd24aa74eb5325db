r"""Draw the report of a finished run: bytes, time per image and AUROC of each file, side by side.

Command:  python experiments/plot_report.py --report=demo_run/report.json --output=experiments/results/demo.png
Time:     2 seconds.
Result:   a PNG. Needs the extra `report` (matplotlib).
"""

from __future__ import annotations

import sys
from pathlib import Path

from absl import app, flags

from cxr_compress.errors import CompressionError
from cxr_compress.files import make_folder, write_bytes
from cxr_compress.report import read_report
from cxr_compress.report.run_folder import draw_report

_REPORT = flags.DEFINE_string("report", "demo_run/report.json", "The report.json of a run.")
_OUTPUT = flags.DEFINE_string("output", "experiments/results/demo.png", "The picture to write.")


def main(_: list[str]) -> None:
    """Draw the report that the flags name."""
    try:
        output = Path(_OUTPUT.value)
        make_folder(output.parent)
        write_bytes(output, draw_report(read_report(_REPORT.value)))
    except CompressionError as error:
        sys.exit(f"plot_report: {error}")
    print(f"wrote {_OUTPUT.value}")


if __name__ == "__main__":
    app.run(main)
