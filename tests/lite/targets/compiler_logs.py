"""What versions of edgetpu_compiler print, and a script that repeats it; nothing is compiled in these tests."""

from __future__ import annotations

import stat
from pathlib import Path

PARTLY = """\
Edge TPU Compiler version 15.0.340273435

Model compiled successfully in 577 ms.

Input model: model.tflite
Input size: 8.58MiB
Output model: model_edgetpu.tflite
Output size: 8.70MiB
On-chip memory used for caching model parameters: 3.00KiB
On-chip memory remaining for caching model parameters: 7.67MiB
Off-chip memory used for streaming uncached model parameters: 0.00B
Number of Edge TPU subgraphs: 1
Total number of operations: 36
Operation log: model_edgetpu.log

Model successfully compiled but not all operations are supported by the Edge TPU. A percentage of the model will \
instead run on the CPU, which is slower.
Number of operations that will run on Edge TPU: 2
Number of operations that will run on CPU: 34

Operator                       Count      Status

MAX_POOL_2D                    6          More than one subgraph is not supported
QUANTIZE                       2          Operation is otherwise supported, but not mapped due to some \
unspecified limitation
QUANTIZE                       1          Mapped to Edge TPU
CONV_2D                        1          Mapped to Edge TPU
CONV_2D                        14         More than one subgraph is not supported
RESIZE_NEAREST_NEIGHBOR        1          Operation version not supported
LEAKY_RELU                     11         Operation not supported
"""
LOG_FILE = """\
Edge TPU Compiler version 16.0.384591198
Input: model.tflite
Output: model_edgetpu.tflite

Operator                       Count      Status

FULLY_CONNECTED                1          Mapped to Edge TPU
CONV_2D                        120        Mapped to Edge TPU
"""
NEWEST = """\
Edge TPU Compiler version 16.0.384591198
Started a compilation timeout timer of 180 seconds.

Model compiled successfully in 1203 ms.

Input model: model.tflite
On-chip memory used for caching model parameters: 6.81MiB
On-chip memory remaining for caching model parameters: 1.02KiB
Off-chip memory used for streaming uncached model parameters: 1.50MiB
Number of Edge TPU subgraphs: 1
Total number of operations: 121
Operation log: model_edgetpu.log
See the operation log file for individual operation details.
Compilation child process completed within timeout period.
Compilation succeeded!
"""


def recorded(folder: Path, said: str, *, code: int = 0, log: str = "", seconds: int = 0) -> str:
    """A script that only prints what a compiler has printed; nothing is compiled here."""
    program = folder / "recorded"
    lines = ["#!/bin/sh", f"sleep {seconds}", 'test -s "$4" || exit 9', f"cat <<'SAID'\n{said}SAID"]
    lines += [f"cat > \"$3/model_edgetpu.log\" <<'LOG'\n{log}LOG"] if log else []
    program.write_text("\n".join([*lines, f"exit {code}", ""]))
    program.chmod(program.stat().st_mode | stat.S_IXUSR)
    return str(program)
