"""Runs Coral's closed edgetpu_compiler where it is installed, and reads what it says.

The layout of its messages is that of the examples at coral.ai/docs/edgetpu/compiler and of the logs in the issues of
google-coral/edgetpu, for versions 2.1 to 16.0.
"""

from __future__ import annotations

import re
import shutil
import subprocess
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from cxr_compress.errors import CompressionError, RuntimeUnavailableError

COMPILER = "edgetpu_compiler"
MAPPED = "Mapped to Edge TPU"
DEFAULT_TIMEOUT_S = 300.0

_UNITS = {"B": 1, "KiB": 2**10, "MiB": 2**20, "GiB": 2**30}
_ROW = re.compile(r"^([A-Za-z][\w-]*)\s+(\d+)\s+(\S.*?)\s*$", re.MULTILINE)
# Its words for a failure, in the order of how much they tell.
_FAILURES = (
    r"^ERROR: (?!Registration failed)(.+)$",
    r"^Compilation failed: (.+)$",
    r"^(Model not quantized|Model could not be parsed.*)$",
    r"^(Invalid model: .+)$",
    r"^(Internal compiler error.*?)\.? Aborting!",
    r"^(Compilation failed due to .+|Compilation timed out.*)$",
)


@dataclass(frozen=True)
class CompiledOps:
    """Operators of one kind and what the compiler made of them, in its own words."""

    kind: str
    count: int
    status: str


@dataclass(frozen=True)
class CompilerLog:
    """What the compiler says of a model.

    Attributes:
        version: of the compiler, "" where it does not say.
        succeeded: it wrote a compiled file.
        error: its reason where it did not.
        ops: kinds with counts and status.
        subgraphs: parts that run on the Edge TPU; None where it does not say, as in the fields below.
        on_chip_bytes: parameters in the cache of the Edge TPU.
        on_chip_free_bytes: room that is left there.
        off_chip_bytes: parameters that are sent over the bus at every inference.
    """

    version: str
    succeeded: bool
    error: str
    ops: tuple[CompiledOps, ...]
    subgraphs: int | None
    on_chip_bytes: int | None
    on_chip_free_bytes: int | None
    off_chip_bytes: int | None

    @property
    def mapped(self) -> int:
        """Operators that run on the Edge TPU."""
        return sum(op.count for op in self.ops if op.status == MAPPED)

    @property
    def on_cpu(self) -> int:
        """Operators that do not."""
        return sum(op.count for op in self.ops) - self.mapped

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready."""
        return {**asdict(self), "mapped": self.mapped, "on_cpu": self.on_cpu}

    def to_text(self) -> str:
        """A few lines to read."""
        name = f"compiler   {self.version or 'of unknown version'}"
        if not self.succeeded:
            return f"{name}: refused: {self.error}"
        lines = [f"{name}: {self.mapped} operators on the Edge TPU, {self.on_cpu} on the CPU"]
        if self.on_chip_bytes is not None and self.off_chip_bytes is not None:
            kept = f"{self.on_chip_bytes:,} bytes of parameters cached"
            lines.append(f"compiler   {kept}, {self.off_chip_bytes:,} streamed")
        lines += [f"compiler   {op.count} x {op.kind}: {op.status}" for op in self.ops if op.status != MAPPED]
        return "\n".join(lines)


def find_compiler() -> str | None:
    """Where edgetpu_compiler is; None where it is not on the PATH."""
    return shutil.which(COMPILER)


def run_compiler(content: bytes, program: str, *, timeout_s: float = DEFAULT_TIMEOUT_S) -> CompilerLog:
    """Compile a model in a temporary folder; only what the compiler says is kept.

    Raises:
        RuntimeUnavailableError: the program cannot be started.
        CompressionError: it takes longer than the timeout, or says nothing that can be read.
    """
    with tempfile.TemporaryDirectory(prefix="cxr_edgetpu_") as folder:
        model = Path(folder, "model.tflite")
        model.write_bytes(content)
        command = [program, "-s", "-o", folder, str(model)]
        try:
            options: dict[str, Any] = {"capture_output": True, "text": True, "errors": "replace", "cwd": folder}
            done = subprocess.run(command, check=False, timeout=timeout_s, **options)
        except subprocess.TimeoutExpired as error:
            raise CompressionError(f"{COMPILER} was stopped after {timeout_s:.0f} s: try a smaller model") from error
        except OSError as error:
            raise RuntimeUnavailableError(f"{program} cannot be started: {error.strerror or error}") from error
        logs = [path.read_text(encoding="utf-8", errors="replace") for path in sorted(Path(folder).glob("*.log"))]
    # With -s the table is printed; older versions write it into the log file alone.
    said = f"{done.stdout}\n{done.stderr}"
    if not _ROW.search(said):
        said = "\n".join([said, *logs])
    return _checked(parse_log(said), done.returncode)


def parse_log(text: str) -> CompilerLog:
    """Read what the compiler printed, or the log file it wrote."""
    ops = tuple(CompiledOps(kind, int(count), status) for kind, count, status in _ROW.findall(_table(text)))
    error = _error(text)
    return CompilerLog(
        version=_first(r"^Edge TPU Compiler version (\S+)", text) or "",
        succeeded=not error and bool(ops or re.search(r"compiled successfully|successfully compiled", text)),
        error=error,
        ops=ops,
        subgraphs=_count(r"^Number of Edge TPU subgraphs: (\d+)", text),
        on_chip_bytes=_bytes("On-chip memory used for caching model parameters", text),
        on_chip_free_bytes=_bytes("On-chip memory (?:remaining|available) for caching model parameters", text),
        off_chip_bytes=_bytes("Off-chip memory used for streaming uncached model parameters", text),
    )


def _checked(log: CompilerLog, code: int) -> CompilerLog:
    if log.succeeded or log.error:
        return log
    raise CompressionError(
        f"{COMPILER} ended with code {code} and said nothing that can be read: run it by hand to see why"
    )


def _table(text: str) -> str:
    """The part below the heading of the table."""
    found = re.search(r"^Operator\s+Count\s+Status\s*$", text, re.MULTILINE)
    return text[found.end() :] if found else ""


def _error(text: str) -> str:
    return next((found for pattern in _FAILURES if (found := _first(pattern, text))), "")


def _first(pattern: str, text: str) -> str | None:
    found = re.search(pattern, text, re.MULTILINE)
    return found.group(1).strip() if found else None


def _count(pattern: str, text: str) -> int | None:
    found = _first(pattern, text)
    return None if found is None else int(found)


def _bytes(name: str, text: str) -> int | None:
    found = re.search(rf"^{name}: ([\d.]+)\s*({'|'.join(_UNITS)})\b", text, re.MULTILINE)
    return None if found is None else round(float(found.group(1)) * _UNITS[found.group(2)])
