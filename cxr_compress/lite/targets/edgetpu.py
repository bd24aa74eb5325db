"""Whether a model will run on Coral's Edge TPU, looked up in its flatbuffer: no compiler and no device is needed.

The compiler is closed, runs on x86-64 Debian only and has not changed since 2021; this reads the same file against the
documented rules and says for every operator where it will run. What the rules leave open (how large a tensor may be)
only the compiler knows: where it is installed, `run_compiler` asks it.

Source: coral.ai/docs/edgetpu/models-intro, "Model requirements" (8 bits, static sizes, constant parameters, at most the
three innermost sizes above 1) and "Compiling": at the first operation that the Edge TPU does not support, the model is
cut in two, and all that follows runs on the CPU.
"""

from __future__ import annotations

import re
import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from itertools import compress, groupby
from pathlib import Path
from typing import Any

from cxr_compress.errors import CompressionError, RuntimeUnavailableError
from cxr_compress.lite.graph.flatbuffer import Graph
from cxr_compress.lite.graph.names import Node, read_nodes, tensor_bytes
from cxr_compress.lite.targets.edgetpu_ops import caution, is_too_new, why_not

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


# The layout of the compiler's messages is that of the examples at coral.ai/docs/edgetpu/compiler and of the logs in the
# issues of google-coral/edgetpu, for versions 2.1 to 16.0.
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


# Of 8 MB of memory on the chip; compilers report 7.6 to 7.9 MiB, less where activations need more.
CACHE_BYTES = int(7.6 * 2**20)
_AFTER = "supported, but it comes after the first operator that is not, and the compiler cuts the model only once"
_REFUSED = "the compiler refuses the whole model"


@dataclass(frozen=True)
class OpVerdict:
    """One operator and where it will run.

    Attributes:
        index: place in the order of execution.
        kind: "CONV_2D".
        version: of the operator.
        layer: of the Keras model.
        supported: the Edge TPU can compute it.
        mapped: it will run there.
        reason: why not; where it will, what the documentation leaves to the compiler.
        output_bytes: of what it computes.
    """

    index: int
    kind: str
    version: int
    layer: str
    supported: bool
    mapped: bool
    reason: str
    output_bytes: int


@dataclass(frozen=True)
class EdgeTpuReport:
    """What the Edge TPU will make of a model.

    Attributes:
        ops: every operator, in the order they run.
        problems: what keeps the whole model off the Edge TPU or costs time at its ends, in clauses.
        refused: the compiler will not take the model at all.
        inputs: dtypes of what the model takes.
        outputs: dtypes of what it gives.
        parameter_bytes: constants of the operators that run on the Edge TPU, of all where the model is refused; the
            compiler pads them.
        largest_tensor: name of the largest tensor that is computed.
        largest_tensor_bytes: its size.
        segments: runs of supported operators; the compiler maps the first one, and all only with its flag -a.
        compiler: what the compiler says, where it was run.
    """

    ops: tuple[OpVerdict, ...] = field(repr=False)
    problems: tuple[str, ...]
    refused: bool
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    parameter_bytes: int
    largest_tensor: str
    largest_tensor_bytes: int
    segments: int
    compiler: CompilerLog | None = None

    @property
    def mapped(self) -> int:
        """Operators that will run on the Edge TPU."""
        return sum(op.mapped for op in self.ops)

    @property
    def streamed_bytes(self) -> int:
        """Parameters beyond the cache, sent over the bus at every inference."""
        return max(0, self.parameter_bytes - CACHE_BYTES)

    @property
    def first_on_cpu(self) -> OpVerdict | None:
        """The operator at which the model leaves the Edge TPU."""
        return next((op for op in self.ops if not op.mapped), None)

    @property
    def ready(self) -> bool:
        """Every operator runs on the Edge TPU, and both ends are 8-bit."""
        return not self.problems and self.first_on_cpu is None

    def with_compiler(self, log: CompilerLog) -> EdgeTpuReport:
        """The same with what the compiler says."""
        return replace(self, compiler=log)

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready."""
        fields = asdict(self)
        fields["compiler"] = None if self.compiler is None else self.compiler.to_dict()
        more = {name: getattr(self, name) for name in ("mapped", "streamed_bytes", "ready")}
        return {**more, "on_cpu": len(self.ops) - self.mapped, "cache_bytes": CACHE_BYTES, **fields}

    def to_text(self) -> str:
        """The lines above the list of operators."""
        left = len(self.ops) - self.mapped
        many = self.streamed_bytes
        fits = f"{many:,} too many, which are sent again for every image" if many else "fits"
        lines = [
            f"edge tpu   {self.mapped} of {len(self.ops)} operators, {left} on the CPU"
            + (f", {self.segments} segments (edgetpu_compiler -a maps all of them)" if self.segments > 1 else ""),
            f"ends       takes {', '.join(self.inputs)}, gives {', '.join(self.outputs)}",
            f"parameters {self.parameter_bytes:,} bytes, cache {CACHE_BYTES:,}: {fits}",
            f"largest    {self.largest_tensor_bytes:,} bytes, {self.largest_tensor}",
            *(f"problem    {text}" for text in self.problems),
        ]
        first = self.first_on_cpu
        if first is not None and not self.refused:
            lines.append(f"leaves at  operator {first.index}, {first.kind} of layer {first.layer}: {first.reason}")
        lines.append(f"verdict    {'runs on the Edge TPU' if self.ready else 'does not run there'} as a whole")
        return "\n".join([*lines, *([] if self.compiler is None else [self.compiler.to_text()])])


def edgetpu_report(content: bytes) -> EdgeTpuReport:
    """Read a flatbuffer against the Edge TPU's rules; nothing is run.

    Raises:
        ModelFileError: the bytes are no .tflite flatbuffer, or a damaged one.
        RuntimeUnavailableError: ai-edge-litert, whose schema this reads with, is not installed.
    """
    graph, nodes = read_nodes(content)
    reasons = [why_not(node) for node in nodes]
    refusals = _refusals(graph, nodes)
    kept = nodes if refusals else ()
    mapped = [False] * len(nodes) if refusals else _mapped(nodes, reasons)
    computed = [tensor for node in nodes for tensor in node.outputs]
    largest = max(computed, key=tensor_bytes, default=None)
    return EdgeTpuReport(
        ops=tuple(map(_verdict, nodes, reasons, mapped, [bool(refusals)] * len(nodes))),
        problems=refusals or _float_ends(graph),
        refused=bool(refusals),
        inputs=tuple(tensor.dtype for tensor in graph.present(graph.inputs)),
        outputs=tuple(tensor.dtype for tensor in graph.present(graph.outputs)),
        parameter_bytes=_parameter_bytes([*kept, *compress(nodes, mapped)]),
        largest_tensor="" if largest is None else largest.name,
        largest_tensor_bytes=0 if largest is None else tensor_bytes(largest),
        segments=sum(1 for supported, _ in groupby(reasons, key=lambda reason: not reason) if supported),
    )


def check_edgetpu_batch(input_shape: Sequence[int]) -> None:
    """Check the shape of a model before the slow part starts.

    Raises:
        CompressionError: its batch is not 1.
    """
    if input_shape[0] != 1:
        raise CompressionError(_batch_text(input_shape[0]))


def require_edgetpu(report: EdgeTpuReport) -> None:
    """Refuse a model that would not run on the Edge TPU as a whole.

    Raises:
        CompressionError: names the first operator that would not, with its layer, or what is wrong with the model.
    """
    if report.problems:
        raise CompressionError(f"the model is not for the Edge TPU: {report.problems[0]}")
    first = report.first_on_cpu
    if first is not None:
        left = len(report.ops) - report.mapped
        raise CompressionError(
            f"the Edge TPU cannot run {first.kind} (operator {first.index}, layer {first.layer!r}): {first.reason}; "
            f"{left} of {len(report.ops)} operators would run on the CPU: replace that layer, or leave --edgetpu out"
        )


def _refusals(graph: Graph, nodes: tuple[Node, ...]) -> tuple[str, ...]:
    """Why the compiler would not even begin."""
    found = []
    for tensor in graph.present(graph.inputs):
        if tensor.dynamic:
            text = "is open: fix it, and the height and width (batch 1), before the conversion"
            found.append(f"the shape of the input {tensor.name!r} {text}")
        elif tensor.shape and tensor.shape[0] != 1:
            found.append(_batch_text(tensor.shape[0]))
    if not found and any(tensor.dynamic for node in nodes for tensor in node.outputs):
        node = next(node for node in nodes if any(tensor.dynamic for tensor in node.outputs))
        found.append(f"{node.kind} (operator {node.index}, layer {node.layer!r}) has an output of open size")
    found += [
        f"{node.kind} version {node.version} (operator {node.index}, layer {node.layer!r}) is newer than the compiler"
        for node in nodes
        if is_too_new(node)
    ][:1]
    if not any(tensor.scale for node in nodes for tensor in node.outputs):
        found.append("it is not quantized: convert with --quant_type=int8")
    return tuple(found)


def _batch_text(batch: int) -> str:
    return f"the batch is {batch}: the Edge TPU takes one image at a time, convert with batch 1"


def _float_ends(graph: Graph) -> tuple[str, ...]:
    ends = [("input", graph.inputs), ("output", graph.outputs)]
    return tuple(
        f"the {role} {tensor.name!r} is {tensor.dtype}: convert with --quant_type=int8, which has 8-bit ends"
        for role, places in ends
        for tensor in graph.present(places)
        if tensor.dtype not in ("int8", "uint8")
    )


def _mapped(nodes: tuple[Node, ...], reasons: list[str]) -> list[bool]:
    """All up to the first operator that is not supported; a QUANTIZE of a float input stays on the CPU before them."""
    start = next((i for i, node in enumerate(nodes) if not node.at_border), len(nodes))
    end = next((i for i in range(start, len(nodes)) if reasons[i]), len(nodes))
    return [not reasons[i] and i < end for i in range(len(nodes))]


def _verdict(node: Node, reason: str, mapped: bool, refused: bool) -> OpVerdict:
    supported = not reason
    if supported and not mapped:
        reason = _REFUSED if refused else _AFTER
    return OpVerdict(
        index=node.index,
        kind=node.kind,
        version=node.version,
        layer=node.layer,
        supported=supported,
        mapped=mapped,
        reason=reason or caution(node),
        output_bytes=sum(map(tensor_bytes, node.outputs)),
    )


def _parameter_bytes(nodes: list[Node]) -> int:
    buffers = {tensor.buffer: tensor_bytes(tensor) for node in nodes for tensor in node.constants}
    return sum(buffers.values())
