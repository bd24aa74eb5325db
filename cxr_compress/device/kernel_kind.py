"""What a convolution or dense kernel computes apart from its widths: the unit in which layer times are measured."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any

from cxr_compress.errors import CompressionError

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
        dilation: likewise.
        groups: of a grouped convolution; `ONE_CHANNEL_A_GROUP` where there are as many as input channels.
        multiplier: output channels per input channel of a depthwise kernel, 1 else.
        padding: "same" or "valid".
        input_size: spatial size of the input; for a dense layer the axes in front of the channels.
        output_size: likewise of the output.
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
        outputs: likewise of its output axis; (1, 1) for a depthwise kernel.
    """

    kind: KernelKind
    inputs: Range
    outputs: Range


@dataclass(frozen=True)
class LayerUse:
    """One use of a kernel in the uncut model: the name of its kind and the lengths of its two channel axes."""

    kind: str
    inputs: int
    outputs: int


def _text(size: Size) -> str:
    return "x".join(map(str, size))


def _short(size: Size) -> str:
    return str(size[0]) if len(set(size)) == 1 else _text(size)
