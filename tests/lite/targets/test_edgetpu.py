"""The pre-flight for the Edge TPU: documented limits operator by operator, and the split of whole models."""

from __future__ import annotations

import json
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from cxr_compress.errors import CompressionError, ModelFileError
from cxr_compress.lite import convert
from cxr_compress.lite.graph.flatbuffer import Tensor, to_bytes, to_object
from cxr_compress.lite.graph.names import Node
from cxr_compress.lite.targets.edgetpu import CACHE_BYTES, EdgeTpuReport, edgetpu_report, require_edgetpu
from cxr_compress.lite.targets.edgetpu_ops import OPERATIONS, why_not
from tests.lite import nets
from tests.lite.targets import target_nets


def tensor(*shape: int, dtype: str = "int8", values: Any = None, name: str = "t", zero: int = 0) -> Tensor:
    """A tensor; a constant where it has values."""
    held = None if values is None else np.asarray(values, dtype)
    shape = shape if held is None else held.shape
    return Tensor(0, name, shape, dtype, (0.1,), (zero,), 0, False, 0, held)


def node(kind: str, inputs: list[Tensor | None], *outputs: Tensor, version: int = 1, **options: Any) -> Node:
    given = outputs or (tensor(1, 8, 8, 4),)
    return Node(0, kind, version, "layer", tuple(inputs), given, False, SimpleNamespace(**options))


IMAGE = tensor(1, 8, 8, 4)
KERNEL = tensor(values=np.ones((8, 3, 3, 4)))
BIAS = tensor(values=np.ones(8), dtype="int32")


def axes(*numbers: int) -> Tensor:
    return tensor(values=list(numbers), dtype="int32")


@pytest.mark.parametrize(
    ("allowed", "refused", "reason"),
    [
        (
            node("AVERAGE_POOL_2D", [IMAGE], fusedActivationFunction=0),
            node("AVERAGE_POOL_2D", [IMAGE], fusedActivationFunction=1),
            "it has a fused activation",
        ),
        (
            node("CONCATENATION", [IMAGE, tensor(values=np.full((1, 8, 8, 4), -3), zero=-3)]),
            node("CONCATENATION", [IMAGE, tensor(values=np.full((1, 8, 8, 4), -3), zero=-2)]),
            "it joins a constant that is not all zeros",
        ),
        (
            node("CONCATENATION", [IMAGE, IMAGE, IMAGE]),
            node("CONCATENATION", [IMAGE, IMAGE, tensor(values=np.zeros((1, 8, 8, 4)))]),
            "it joins a constant and 2 more tensors: one is allowed",
        ),
        (
            node("CONV_2D", [IMAGE, KERNEL, BIAS], dilationHFactor=2, dilationWFactor=2),
            node("CONV_2D", [IMAGE, KERNEL, BIAS], dilationHFactor=2, dilationWFactor=1),
            "its dilation is 2 x 1: both have to be the same",
        ),
        (
            node("CONV_2D", [IMAGE, KERNEL, None]),
            node("CONV_2D", [IMAGE, tensor(8, 3, 3, 4), BIAS]),
            "only the innermost 3 sizes may be above 1",
        ),
        (
            node("TRANSPOSE_CONV", [axes(1, 8, 8, 4), KERNEL, IMAGE, BIAS]),
            node("TRANSPOSE_CONV", [axes(1, 8, 8, 4), tensor(1, 3, 3, 4), IMAGE, BIAS]),
            "its kernel or bias is computed",
        ),
        (
            node("FULLY_CONNECTED", [tensor(1, 16), KERNEL, BIAS], tensor(1, 8), weightsFormat=0),
            node("FULLY_CONNECTED", [tensor(4, 16), KERNEL, BIAS], tensor(4, 8), weightsFormat=0),
            "its output is 4 x 8: it has to be one-dimensional",
        ),
        (
            node("FULLY_CONNECTED", [tensor(1, 16), KERNEL], tensor(1, 8), weightsFormat=0),
            node("FULLY_CONNECTED", [tensor(1, 16), KERNEL], tensor(1, 8), weightsFormat=1),
            "its weights are shuffled",
        ),
        (node("MEAN", [IMAGE, axes(1, 2)]), node("MEAN", [IMAGE, axes(0, 1)]), "it reduces the batch"),
        (
            node("MEAN", [tensor(1, 8, 8, 8), axes(-1)]),
            node("MEAN", [tensor(1, 8, 8, 6), axes(-1)]),
            "it averages 6 channels: their number has to be a multiple of 4",
        ),
        (
            node("SUM", [IMAGE, axes(1)]),
            node("SUM", [IMAGE, tensor(1, dtype="int8")]),
            "its axes are computed: they have to be constants",
        ),
        (node("REDUCE_MAX", [IMAGE, axes(2)]), node("REDUCE_MAX", [IMAGE, axes(-4)]), "it reduces the batch"),
        (node("PACK", [IMAGE, IMAGE], axis=1), node("PACK", [IMAGE, IMAGE], axis=0), "it packs along the batch"),
        (
            node("PAD", [IMAGE, axes(0, 0, 1, 1)]),
            node("PAD", [IMAGE, tensor(values=[[1, 0], [1, 1]], dtype="int32")]),
            "it pads the batch",
        ),
        (
            node("PRELU", [IMAGE, tensor(values=np.ones((1, 1, 4)))]),
            node("PRELU", [IMAGE, tensor(values=np.ones((8, 8, 4)))]),
            "its slopes are 8 x 8 x 4: share them over rows and columns",
        ),
        (
            node("SOFTMAX", [tensor(1, 16_000)], tensor(1, 16_000)),
            node("SOFTMAX", [tensor(1, 16_001)], tensor(1, 16_001)),
            "its input has 16001 elements, 16000 are allowed",
        ),
        (
            node("SOFTMAX", [tensor(1, 4)], tensor(1, 4)),
            node("SOFTMAX", [tensor(2, 4)], tensor(2, 4)),
            "its input is 2 x 4: it has to be one-dimensional",
        ),
        (node("SPLIT", [axes(3), IMAGE]), node("SPLIT", [axes(-4), IMAGE]), "it splits the batch"),
        (
            node("STRIDED_SLICE", [IMAGE, axes(0), axes(8), axes(1, 1, 1, 1)]),
            node("STRIDED_SLICE", [IMAGE, axes(0), axes(8), axes(1, 2, 1, 1)]),
            "its strides are not all 1",
        ),
        (
            node("STRIDED_SLICE", [IMAGE, axes(0), axes(8), axes(1)], newAxisMask=0),
            node("STRIDED_SLICE", [IMAGE, axes(0), axes(8), axes(1)], newAxisMask=1),
            "it has an ellipsis or a new axis",
        ),
        (node("CONV_2D", [IMAGE, KERNEL, BIAS], version=5), node("CONV_2D", [IMAGE], version=6), "knows 5 at most"),
        (node("ADD", [IMAGE, IMAGE]), node("LEAKY_RELU", [IMAGE]), "the Edge TPU has no such operation"),
        (
            node("QUANTIZE", [tensor(1, 8, 8, 4, dtype="uint8")]),
            node("QUANTIZE", [tensor(1, 8, 8, 4, dtype="float32", name="image")]),
            r"it works on float32 \(image\)",
        ),
        (node("MUL", [IMAGE, IMAGE]), node("MUL", [IMAGE, tensor(1, dtype="int16")]), "it works on int16"),
        (
            node("ADD", [tensor(1, 1, 8, 8, 4)], tensor(1, 1, 8, 8, 4)),
            node("ADD", [tensor(2, 8, 8, 4)], tensor(2, 8, 8, 4)),
            "t is 2 x 8 x 8 x 4: only the innermost 3 sizes may be above 1",
        ),
    ],
    ids=lambda value: value.kind if isinstance(value, Node) else None,
)
def test_why_not_at_the_documented_limit(allowed: Node, refused: Node, reason: str) -> None:
    assert why_not(allowed) == ""
    with pytest.raises(AssertionError, match=reason):
        raise AssertionError(why_not(refused))


def test_why_not_of_every_listed_operation_looks_at_sizes_that_are_open() -> None:
    for kind in OPERATIONS:
        assert "known only when the model runs" in why_not(node(kind, [tensor(1, -1, 8, 4)]))


@pytest.fixture(scope="module")
def leaky() -> bytes:
    images = target_nets.images()
    return convert(target_nets.with_leaky_middle(), "int8", calibration=[images], calibration_steps=16).content


def test_edgetpu_report_of_a_dense_block_maps_all_of_it(block_files: Any) -> None:
    report = edgetpu_report(block_files["int8"].content)
    assert report.ready
    assert report.first_on_cpu is None
    assert (report.mapped, report.segments) == (len(report.ops), 1)
    assert (report.inputs, report.outputs) == (("int8",), ("int8",))
    # conv 3x3x3x8, conv 3x3x8x8, dense 16x4 in 8 bits; two batch norms of 8 and 16 channels, each a sum whose factor is
    # folded; 8 zeros of 4 bytes that both convolutions share as their bias, 4 biases of 4 bytes; 2 axes of 4 bytes.
    assert report.parameter_bytes == 216 + 576 + 64 + (8 + 16) + 8 * 4 + 4 * 4 + 2 * 4
    assert (report.largest_tensor_bytes, report.streamed_bytes) == (16 * 16 * 16, 0)
    assert "runs on the Edge TPU as a whole" in report.to_text()
    require_edgetpu(report)


def test_edgetpu_report_cuts_the_model_at_the_first_operator_that_is_not_supported(leaky: bytes) -> None:
    report = edgetpu_report(leaky)
    assert [(op.kind, op.supported, op.mapped) for op in report.ops] == [
        ("CONV_2D", True, True),
        ("LEAKY_RELU", False, False),
        ("CONV_2D", True, False),
        ("MEAN", True, False),
        ("FULLY_CONNECTED", True, False),
    ]
    assert [op.layer for op in report.ops] == ["before", "leak", "after", "mean", "logits"]
    assert report.ops[1].reason == "the Edge TPU has no such operation"
    assert "the compiler cuts the model only once" in report.ops[2].reason
    assert (report.mapped, report.segments) == (1, 2)
    assert report.parameter_bytes == 3 * 3 * 4 * 8 + 8 * 4  # of the first convolution alone
    text = report.to_text()
    assert "1 of 5 operators, 4 on the CPU, 2 segments" in text
    assert "leaves at  operator 1, LEAKY_RELU of layer leak" in text
    with pytest.raises(CompressionError, match=r"cannot run LEAKY_RELU \(operator 1, layer 'leak'\): .* 4 of 5 operat"):
        require_edgetpu(report)
    document = json.loads(json.dumps(report.to_dict()))
    assert (document["mapped"], document["on_cpu"], document["ready"], document["compiler"]) == (1, 4, False, None)
    assert document["ops"][1]["layer"] == "leak"


def test_edgetpu_report_of_float_ends_keeps_them_on_the_cpu_and_the_rest_off_it(block_files: Any) -> None:
    report = edgetpu_report(block_files["int8_float_io"].content)
    assert [(op.kind, op.mapped) for op in (report.ops[0], report.ops[-1])] == [
        ("QUANTIZE", False),
        ("DEQUANTIZE", False),
    ]
    assert all(op.mapped for op in report.ops[1:-1])
    assert not report.ready
    assert len(report.problems) == 2
    with pytest.raises(CompressionError, match="the input 'image' is float32: convert with --quant_type=int8"):
        require_edgetpu(report)


@pytest.mark.parametrize("quant_type", ["none", "fp16", "dynamic"])
def test_edgetpu_report_of_a_float_model_maps_nothing(block_files: Any, quant_type: str) -> None:
    report = edgetpu_report(block_files[quant_type].content)
    assert (report.mapped, report.refused) == (0, True)
    assert report.problems == ("it is not quantized: convert with --quant_type=int8",)


def edited(content: bytes, change: Any) -> EdgeTpuReport:
    model = to_object(content)
    change(model)
    return edgetpu_report(to_bytes(model))


def test_edgetpu_report_of_an_open_batch_is_one_line(block_files: Any) -> None:
    def open_batch(model: Any) -> None:
        for tensor in model.subgraphs[0].tensors:
            if len(tensor.shape) == 4:
                tensor.shapeSignature = np.array([-1, *tensor.shape[1:]], np.int32)

    report = edited(block_files["int8"].content, open_batch)
    assert (report.mapped, report.refused) == (0, True)
    with pytest.raises(CompressionError, match=r"not for the Edge TPU: the shape of the input 'image' is open: fix it"):
        require_edgetpu(report)


def test_edgetpu_report_of_a_batch_of_two_is_one_line(block_files: Any) -> None:
    def two(model: Any) -> None:
        image = model.subgraphs[0].tensors[int(model.subgraphs[0].inputs[0])]
        image.shape = np.array([2, *image.shape[1:]], np.int32)

    with pytest.raises(CompressionError, match="the batch is 2: the Edge TPU takes one image at a time"):
        require_edgetpu(edited(block_files["int8"].content, two))


def test_edgetpu_report_of_an_operator_newer_than_the_compiler_refuses_the_file(block_files: Any) -> None:
    def newer(model: Any) -> None:
        for code in model.operatorCodes:
            if code.builtinCode == 3:  # CONV_2D
                code.version = 6

    report = edited(block_files["int8"].content, newer)
    assert report.refused
    with pytest.raises(
        CompressionError, match=r"CONV_2D version 6 \(operator 0, layer 'stem'\) is newer than the comp"
    ):
        require_edgetpu(report)


def test_edgetpu_report_counts_the_parameters_beyond_the_cache(block_files: Any) -> None:
    """The cache is 7.6 MiB: one byte more is one byte that is streamed."""
    report = edgetpu_report(block_files["int8"].content)
    assert CACHE_BYTES == 7_969_177
    full, more = (
        EdgeTpuReport(report.ops, (), False, ("int8",), ("int8",), CACHE_BYTES + extra, "t", 1, 1) for extra in (0, 1)
    )
    assert (full.streamed_bytes, more.streamed_bytes) == (0, 1)
    assert "cache 7,969,177: fits" in full.to_text()
    assert "cache 7,969,177: 1 too many, which are sent again for every image" in more.to_text()


def test_edgetpu_report_of_no_flatbuffer_says_so() -> None:
    with pytest.raises(ModelFileError, match=r"expected a \.tflite flatbuffer"):
        edgetpu_report(b"nothing of the kind")


def test_edgetpu_report_of_uint8_pixels_maps_the_requantization_too() -> None:
    from cxr_compress.device.spec import PreprocessSpec

    pixels = np.random.default_rng(0).integers(0, 256, (16, 16, 16, 1), np.uint8)
    made = convert(nets.chain(), "int8", calibration=[pixels], calibration_steps=16, pixels=PreprocessSpec(16, 16))
    report = edgetpu_report(made.content)
    assert report.inputs == ("uint8",)
    assert report.ready, report.to_text()
