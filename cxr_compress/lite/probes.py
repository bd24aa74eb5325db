"""Single-layer .tflite files at a few widths of each kind of kernel, packed with the whole model for a device."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import ceil, gcd, prod
from typing import Any

import numpy as np

from cxr_compress.device.cost_table import ONE_CHANNEL_A_GROUP, KernelKind, LayerUse, ProbeSpec, Range
from cxr_compress.device.probe_pack import MoveProbe, Probe, ProbePack
from cxr_compress.errors import CompressionError
from cxr_compress.lite.freeze import freeze_call
from cxr_compress.lite.graph.flatbuffer import read_graphs
from cxr_compress.lite.int8.ranges import write_ranges
from cxr_compress.lite.lowering import lower, quantize, quantize_int16
from cxr_compress.quant_types import QUANT_TYPES, TYPES

# Kernels compute in blocks of 8 channels: odd widths would tell the cost of an unfinished block.
_BLOCK = 8
# 8 MB in float32. Wider layers (the dense ones of VGG16 take 400 MB) grow in straight lines from here on.
_MOST_ELEMENTS = 1 << 21
_SEED = 0
# Keras numbers the layers of a process; names end up in the file.
_NAME = "probe"
# An int8 probe's values do not matter to its time, but they must have ranges.
_RANGE = (-3.0, 3.0)
_MOVE_SIZES, _MOVE_CHANNELS = (4, 12, 40), 64
_IDLE = KernelKind("Dense", (), (), (), 1, 1, "valid", (), ())

Progress = Callable[[str], None]


def build_probe_pack(
    content: bytes,
    specs: Sequence[ProbeSpec],
    uses: Sequence[LayerUse],
    *,
    moved: int,
    quant_type: str,
    progress: Progress | None = None,
) -> ProbePack:
    """Build the probes of a model and pack them with it; about 0.1 s a probe, up to nine for each kind of kernel.

    Args:
        content: flatbuffer of the original model, of this quant type.
        specs: kinds of kernel and their widths.
        uses: every use of a kernel in the model.
        moved: elements that the model's other layers read or write.
        quant_type: one of QUANT_TYPES.
        progress: is told each kind.

    Raises:
        CompressionError: an unknown quant type.
        UnsupportedLayerError: a layer has no TFLite operator.
    """
    if quant_type not in QUANT_TYPES:
        raise CompressionError(f"expected quant_type to be one of {', '.join(QUANT_TYPES)}; got {quant_type!r}")
    probes = []
    for number, spec in enumerate(specs, 1):
        for inputs, outputs in widths(spec):
            probes.append(Probe(spec.kind.name, inputs, outputs, build_probe(spec.kind, inputs, outputs, quant_type)))
        if progress is not None:
            progress(f"built probes of {number} of {len(specs)} kinds of kernel")
    return ProbePack(
        model=content,
        idle=build_probe(_IDLE, 1, 1, quant_type),
        probes=tuple(probes),
        moves=tuple(_build_move(size, quant_type) for size in _MOVE_SIZES),
        uses=tuple(uses),
        moved=moved,
        quant_type=quant_type,
    )


def widths(spec: ProbeSpec) -> list[tuple[int, int]]:
    """The widths to time a kind of kernel at: three of each axis that varies, all combinations."""
    kind = spec.kind
    inputs, outputs = _bounded(spec)
    by_group = kind.multiplier if kind.groups == ONE_CHANNEL_A_GROUP else 1
    firsts = _points(inputs, by_group)
    seconds = [1] if kind.is_depthwise else _points(outputs, kind.groups)
    return [(first, second) for first in firsts for second in seconds]


def _bounded(spec: ProbeSpec) -> tuple[Range, Range]:
    """The ranges of both widths, the larger one halved until the widest kernel is small enough."""
    inputs, outputs = spec.inputs, spec.outputs
    area = prod(spec.kind.kernel_size)
    while area * inputs[1] * outputs[1] > _MOST_ELEMENTS and max(inputs[1], outputs[1]) > _BLOCK:
        if inputs[1] >= outputs[1]:
            inputs = _halved(inputs)
        else:
            outputs = _halved(outputs)
    return inputs, outputs


def _halved(span: Range) -> Range:
    """A range up to half as far; it stays wide enough to see a slope in."""
    return (span[1] // 2, span[1] // 2) if span[0] == span[1] else (min(span[0], span[1] // 8), span[1] // 2)


def _points(span: Range, divisor: int) -> list[int]:
    """Smallest, middle (in proportion) and largest of a range, on whole blocks where the range has any."""
    if span[0] == span[1]:
        return [span[0]]
    middle = round((span[0] * span[1]) ** 0.5)
    return sorted({_on_block(point, span[1], divisor) for point in (span[0], middle, span[1])})


def _on_block(point: int, most: int, divisor: int) -> int:
    block = divisor * _BLOCK // gcd(divisor, _BLOCK)
    step = block if most >= block else divisor
    return max(step, min(step * ceil(point / step), most - most % step))


def build_probe(kind: KernelKind, inputs: int, outputs: int, quant_type: str) -> bytes:
    """A flatbuffer of one layer of this kind and these widths; the same arguments give the same bytes."""
    layer, channels = _layer(kind, inputs, outputs)
    return _convert_layer(layer, (1, *kind.input_size, channels), quant_type)


def _build_move(size: int, quant_type: str) -> MoveProbe:
    """A batch norm of its own on (size, size, channels): one multiplication and one addition, read and write each."""
    from cxr_compress.keras2 import keras

    shape = (1, size, size, _MOVE_CHANNELS)
    content = _convert_layer(keras.layers.BatchNormalization(name=_NAME), shape, quant_type, training=False)
    return MoveProbe(4 * prod(shape), content)


def _convert_layer(layer: Any, shape: tuple[int, ...], quant_type: str, **options: Any) -> bytes:
    layer.build(shape)
    rng = np.random.default_rng(_SEED)
    layer.set_weights([rng.uniform(0.5, 1.5, size=weight.shape).astype(np.float32) for weight in layer.weights])
    frozen = freeze_call(_grouped(layer) or (lambda image: layer(image, **options)), shape)
    if not TYPES[quant_type].calibrated:
        return lower(frozen, quant_type)
    content = lower(frozen, "none")
    floats = (tensor for tensor in read_graphs(content)[0].activations() if tensor.dtype == "float32")
    ranged = write_ranges(content, {tensor.index: _RANGE for tensor in floats})
    return quantize_int16(ranged) if TYPES[quant_type].activations == "int16" else quantize(ranged)


def _grouped(layer: Any) -> Callable[[Any], Any] | None:
    """What a grouped convolution computes; Keras would hide it from the converter in a compiled function."""
    if getattr(layer, "groups", 1) == 1:
        return None
    return lambda image: layer.convolution_op(image, layer.kernel) + layer.bias


def _layer(kind: KernelKind, inputs: int, outputs: int) -> tuple[Any, int]:
    """A Keras layer of a kind, and the channels that go into it."""
    from cxr_compress.keras2 import keras

    layers = keras.layers
    if kind.class_name == "Dense":
        return layers.Dense(outputs, name=_NAME), inputs
    shared: dict[str, Any] = {
        "kernel_size": kind.kernel_size,
        "strides": kind.strides,
        "padding": kind.padding,
        "dilation_rate": kind.dilation,
        "name": _NAME,
    }
    if kind.class_name.startswith("Depthwise"):
        return getattr(layers, kind.class_name)(depth_multiplier=kind.multiplier, **shared), inputs
    if kind.class_name.endswith("Transpose"):
        return getattr(layers, kind.class_name)(outputs, **shared), inputs
    if kind.groups == ONE_CHANNEL_A_GROUP:
        groups = inputs // kind.multiplier
        return getattr(layers, kind.class_name)(inputs, groups=groups, **shared), groups
    return getattr(layers, kind.class_name)(outputs, groups=kind.groups, **shared), inputs * kind.groups
