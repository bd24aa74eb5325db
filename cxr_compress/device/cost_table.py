"""What a model's bytes and milliseconds are made of, as measured: plain data and one JSON, for budgets on both.

A table is made once for a model (its file bytes from one conversion, its layer times on the machine that will run it)
and then prices every thinner version of that model without converting or running it.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any

from cxr_compress.errors import CompressionError

TABLE_FORMAT = 1

_TERMS = ("fixed", "per_in", "per_out", "per_in_out")


@dataclass(frozen=True)
class FileBytes:
    """What an int8 .tflite spends its bytes on.

    Attributes:
        kernel_element: bytes per weight of a convolution or dense kernel.
        filter: bytes per filter: its int32 bias and the scales and zero points of both.
        norm_channel: bytes per channel of a normalization that stays in the graph.
        fixed: bytes of everything else: graph tables, operators, names and the appended metadata.
    """

    kernel_element: float
    filter: float
    norm_channel: float
    fixed: float

    def __post_init__(self) -> None:
        for field in fields(self):
            _check_number(f"file_bytes.{field.name}", getattr(self, field.name))


@dataclass(frozen=True)
class LayerTimes:
    """What a model spends its time on, on one machine; all times in milliseconds.

    Attributes:
        runtime: which TFLite runtime ran it, for instance "ai-edge-litert 2.3.0".
        machine: what it ran on.
        num_threads: threads of the kernels.
        quant_type: of the files that were timed.
        kinds: by kind of kernel ("Conv2D 3x3 s1 28x28"): (fixed, per input channel, per output channel, per pair).
        output_block: kernels compute whole blocks of this many output channels: the count is rounded up to one.
        per_element: per activation element that layers without a kernel read or write.
        fixed: per run of the model.
    """

    runtime: str
    machine: str
    num_threads: int
    quant_type: str
    kinds: dict[str, tuple[float, float, float, float]]
    output_block: int
    per_element: float
    fixed: float

    def __post_init__(self) -> None:
        for name in ("runtime", "machine", "quant_type"):
            if not isinstance(getattr(self, name), str):
                raise CompressionError(f"expected text for layer_times.{name}, got {getattr(self, name)!r}")
        for name in ("num_threads", "output_block"):
            number = getattr(self, name)
            if isinstance(number, bool) or not isinstance(number, int) or number < 1:
                raise CompressionError(f"expected a whole layer_times.{name} of 1 or more, got {number!r}")
        for kind, terms in self.kinds.items():
            if len(terms) != len(_TERMS):
                raise CompressionError(f"expected {', '.join(_TERMS)} for kernel kind {kind!r}, got {terms!r}")
            for name, term in zip(_TERMS, terms, strict=True):
                _check_number(f"layer_times.kinds[{kind!r}].{name}", term)
        _check_number("layer_times.per_element", self.per_element)
        _check_number("layer_times.fixed", self.fixed)


@dataclass(frozen=True)
class CostTable:
    """Measured costs of one model; each part is needed by the budget on it and may be missing else.

    Attributes:
        file_bytes: for budgets on tflite_bytes.
        layer_times: for budgets on latency_ms.
    """

    file_bytes: FileBytes | None = None
    layer_times: LayerTimes | None = None

    def to_json(self) -> str:
        """The table as JSON, one kind of kernel a line; numbers come back exactly."""
        document: dict[str, Any] = {"format": TABLE_FORMAT}
        if self.file_bytes is not None:
            document["file_bytes"] = asdict(self.file_bytes)
        if self.layer_times is None:
            return json.dumps(document, indent=1) + "\n"
        times = asdict(self.layer_times)
        rows = [f"   {json.dumps(kind)}: {json.dumps(list(terms))}" for kind, terms in times.pop("kinds").items()]
        document["layer_times"] = times
        # The two closing braces make room for the kinds, which json would spread over six lines each.
        head = json.dumps(document, indent=1).removesuffix("\n }\n}")
        return head + ',\n  "kinds": {\n' + ",\n".join(rows) + "\n  }\n }\n}\n"

    @classmethod
    def from_json(cls, text: str) -> CostTable:
        """The inverse of `to_json`.

        Raises:
            CompressionError: not a cost table, one of a newer format, or with unknown keys or impossible numbers.
        """
        try:
            values = json.loads(text)
        except ValueError as error:
            raise CompressionError(f"expected a cost table (JSON), could not read it: {error}") from error
        if not isinstance(values, dict) or "format" not in values:
            raise CompressionError("expected a cost table written by cxr_benchmark --layers, got JSON without a format")
        if values["format"] != TABLE_FORMAT:
            raise CompressionError(
                f"expected a cost table of format {TABLE_FORMAT}, got {values['format']!r}: measure it with this "
                "version, or update cxr_compress"
            )
        known = {"format", "file_bytes", "layer_times"}
        _check_keys("a cost table", values, known, optional=known)
        return cls(
            FileBytes(**_part("file_bytes", values, FileBytes)) if "file_bytes" in values else None,
            LayerTimes(**_layer_times(values)) if "layer_times" in values else None,
        )


def _layer_times(values: Mapping[str, Any]) -> dict[str, Any]:
    part = _part("layer_times", values, LayerTimes)
    kinds = part["kinds"]
    if not isinstance(kinds, dict) or not all(isinstance(terms, list) for terms in kinds.values()):
        raise CompressionError("expected layer_times.kinds as lists of four times by kind of kernel")
    return {**part, "kinds": {kind: tuple(terms) for kind, terms in kinds.items()}}


def _part(name: str, values: Mapping[str, Any], made: type[FileBytes] | type[LayerTimes]) -> dict[str, Any]:
    """One part of the document, with exactly the keys of its dataclass."""
    part = values[name]
    if not isinstance(part, dict):
        raise CompressionError(f"expected {name} of a cost table as an object, got {part!r}")
    _check_keys(f"{name} of a cost table", part, {field.name for field in fields(made)})
    return part


def _check_keys(where: str, values: Mapping[str, Any], known: set[str], optional: set[str] | None = None) -> None:
    unknown, missing = sorted(set(values) - known), sorted(known - (optional or set()) - set(values))
    if unknown or missing:
        what = f"unknown {', '.join(unknown)}" if unknown else f"no {', '.join(missing)}"
        raise CompressionError(f"expected {', '.join(sorted(known))} in {where}, got {what}: measure it again")


def _check_number(name: str, value: Any) -> None:
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value) or value < 0:
        raise CompressionError(f"expected a finite number of 0 or more for {name}, got {value!r}")


Size = tuple[int, ...]
Range = tuple[int, int]

ONE_CHANNEL_A_GROUP = 0


@dataclass(frozen=True)
class KernelKind:
    """Kernels that differ in nothing but their input and output channels.

    Attributes:
        class_name: Keras's class, "Conv2D", "DepthwiseConv2D", "Conv2DTranspose", "Dense" and their like.
        kernel_size: spatial size of the kernel; () for a dense layer.
        strides: as long as `kernel_size`.
        dilation: as long as `kernel_size`.
        groups: of a grouped convolution; `ONE_CHANNEL_A_GROUP` where there are as many as input channels.
        multiplier: output channels per input channel of a depthwise kernel, 1 else.
        padding: "same" or "valid".
        input_size: spatial size of the input; for a dense layer the axes in front of the channels.
        output_size: spatial size of the output, in the same form.
    """

    class_name: str
    kernel_size: Size
    strides: Size
    dilation: Size
    groups: int
    multiplier: int
    padding: str
    input_size: Size
    output_size: Size

    @property
    def name(self) -> str:
        """What tables call it: "Conv2D 3x3 s1 28x28", with dilation, groups and multiplier where there are any.

        Padding and input size are left out: at one output size they change next to nothing.
        """
        words = [self.class_name]
        if self.kernel_size:
            words += [_text(self.kernel_size), "s" + _short(self.strides)]
        if any(step != 1 for step in self.dilation):
            words.append("d" + _short(self.dilation))
        if self.groups != 1:
            words.append("g" + (str(self.groups) if self.groups else "1ch"))
        if self.multiplier != 1:
            words.append(f"m{self.multiplier}")
        return " ".join([*words, _text(self.output_size or (1,))])

    @property
    def is_depthwise(self) -> bool:
        """Whether its output channels follow from its input channels, so that it has one width only."""
        return self.class_name.startswith("Depthwise") or self.groups == ONE_CHANNEL_A_GROUP

    @property
    def width_axes(self) -> tuple[int, int | None]:
        """The kernel's axes of input and output channels, from the end; None where there is one width only."""
        if self.groups == ONE_CHANNEL_A_GROUP:
            return -1, None
        if self.is_depthwise:
            return -2, None
        return (-1, -2) if self.class_name.endswith("Transpose") else (-2, -1)

    def to_dict(self) -> dict[str, Any]:
        """The fields by name, ready for JSON."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> KernelKind:
        """The inverse of `to_dict`.

        Raises:
            CompressionError: other keys than its fields.
        """
        known = {field.name for field in fields(cls)}
        if set(values) != known:
            raise CompressionError(f"expected {', '.join(sorted(known))} of a kernel kind, got {sorted(values)}")
        fixed: dict[str, Any] = {key: tuple(v) if isinstance(v, list) else v for key, v in values.items()}
        return cls(**fixed)


@dataclass(frozen=True)
class ProbeSpec:
    """A kind of kernel and the widths between which to time it.

    Attributes:
        kind: what is computed.
        inputs: smallest and largest length of the kernel's input axis (input channels per group).
        outputs: smallest and largest length of its output axis; (1, 1) for a depthwise kernel.
    """

    kind: KernelKind
    inputs: Range
    outputs: Range


@dataclass(frozen=True)
class LayerUse:
    """One use of a kernel in the original model: the name of its kind and the lengths of its two channel axes."""

    kind: str
    inputs: int
    outputs: int


def _text(size: Size) -> str:
    return "x".join(map(str, size))


def _short(size: Size) -> str:
    return str(size[0]) if len(set(size)) == 1 else _text(size)
