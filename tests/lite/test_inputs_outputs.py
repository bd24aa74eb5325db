"""What input and output of a file store, and which operators stay in float."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from cxr_compress.device.runner import Runner
from cxr_compress.device.spec import PreprocessSpec
from cxr_compress.errors import CompressionError
from cxr_compress.lite import LiteModel, convert
from cxr_compress.lite.graph.flatbuffer import read_graphs
from cxr_compress.lite.inputs_outputs import InputOutput, input_output_of
from tests.lite import nets

SPEC = PreprocessSpec(height=16, width=16, channels=3, input="float32", mean=(0.5,) * 3, std=(0.25,) * 3)


@pytest.mark.parametrize(
    ("quant_type", "start", "end"),
    [
        ("int8", "uint8", "uint8"),
        ("int8", "uint8", "int8"),
        ("int8", "float32", "int8"),
        ("int8", "int8", "float32"),
        ("int8", "float32", "float32"),
        ("int16x8", "float32", "int16"),
        ("int16x8", "int16", "float32"),
        ("int16x8", "float32", "float32"),
    ],
)
def test_convert_gives_the_ends_that_are_asked_for(
    chain: Any, chain_files: dict[str, LiteModel], quant_type: str, start: str, end: str
) -> None:
    images = nets.batch(32, seed=1)
    made = convert(chain, quant_type, calibration=[images], inference_input_type=start, inference_output_type=end)
    runner, plain = Runner(made.content), Runner(chain_files[quant_type].content)
    assert (runner.input.dtype.name, runner.output.dtype.name) == (start, end)
    assert not runner.input.takes_pixels
    # What lies between the ends is the same. QUANTIZE may round a value of the image that lies between two codes to the
    # other one than numpy does, which moves a logit by far less than a step, and so its code by one at most.
    step = plain.output.scale
    assert step is not None
    got, expected = runner(images), plain(images)
    assert np.abs(got - expected).max() <= 1.01 * step
    assert np.abs(np.roll(got, 1, axis=0) - expected).max() > 5 * step  # control


def test_convert_with_the_ends_of_a_type_named_gives_the_same_file(
    chain: Any, chain_files: dict[str, LiteModel]
) -> None:
    images = [nets.batch(32, seed=1)]
    named = convert(
        chain, "int8", calibration=images, calibration_steps=32,
        inference_input_type="int8", inference_output_type="int8",
    )  # fmt: skip
    assert named.content == chain_files["int8"].content


def test_convert_of_pixels_has_the_output_that_is_asked_for() -> None:
    pixels = [np.random.default_rng(0).integers(0, 256, (16, 16, 16, 1), np.uint8)]
    common: dict[str, Any] = {"calibration": pixels, "pixels": SPEC, "inference_output_type": "float32"}
    for wanted in (None, "uint8"):
        made = convert(nets.chain(), ["int8", "int16x8"], inference_input_type=wanted, **common)
        for one in made.values():
            assert [one.audit.inputs[0].dtype, one.audit.outputs[0].dtype] == ["uint8", "float32"]
            assert Runner(one.content).input.takes_pixels


@pytest.mark.parametrize(
    ("quant_type", "start", "end", "message"),
    [
        ("none", "int8", None, "none has float32 input and output, got inference_input_type int8: ask for int8"),
        (
            "dynamic",
            None,
            "uint8",
            "dynamic has float32 input and output, got inference_output_type uint8: ask for int8",
        ),
        (["int8", "fp16"], "int8", None, "fp16 has float32 input and output, got inference_input_type int8"),
        (
            "int8_float_io",
            "int8",
            None,
            "int8_float_io has float32 input and output, got inference_input_type int8: ask for int8",
        ),
        ("int8", "int16", None, "int8 has int8 or uint8 or float32 input and output, got .* int16: ask for int16x8"),
        (
            "int16x8",
            None,
            "int8",
            "int16x8 has int16 or float32 input and output, got inference_output_type int8: ask for int8",
        ),
        ("int8", "int4", None, "to be one of float32, int16, int8, uint8; got 'int4'"),
    ],
)
def test_convert_to_ends_that_a_type_has_not_fails_before_anything_is_frozen(
    quant_type: Any, start: str | None, end: str | None, message: str
) -> None:
    with pytest.raises(CompressionError, match=message):
        convert(None, quant_type, calibration=[], inference_input_type=start, inference_output_type=end)


def test_convert_of_pixels_to_another_input_fails() -> None:
    message = "a file that takes pixels has a uint8 input, got inference_input_type int8: leave that out"
    with pytest.raises(CompressionError, match=message):
        convert(None, "int8", calibration=[], pixels=SPEC, inference_input_type="int8")


def test_ends_of_each_type_are_its_own_where_nothing_is_asked() -> None:
    assert input_output_of("int8") == InputOutput("int8", "int8")
    assert input_output_of("int8_float_io", pixels=True) == InputOutput("uint8", "float32", pixels=True)
    assert input_output_of("int16x8") == InputOutput("int16", "int16", arithmetic="int16")
    assert input_output_of("fp16", pixels=True) == InputOutput("uint8", "float32", pixels=True)


def test_convert_leaves_operators_of_a_kind_in_float(block: Any, block_files: dict[str, LiteModel]) -> None:
    images = [nets.batch(32, seed=1)]
    made = convert(block, "int8_float_io", calibration=images, denylisted_ops=["CONV_2D"])
    assert {op.kind for op in made.audit.float_islands} - {"QUANTIZE", "DEQUANTIZE"} == {"CONV_2D"}
    assert sum(op.kind == "CONV_2D" for op in made.audit.float_islands) == 2
    # float_layers names one of the two.
    one = convert(block, "int8_float_io", calibration=images, float_layers=["growth"], denylisted_ops=["MEAN"])
    kinds = [op.kind for op in one.audit.float_islands if op.kind not in ("QUANTIZE", "DEQUANTIZE")]
    assert sorted(kinds) == ["CONV_2D", "MEAN"]
    assert block_files["int8_float_io"].audit.float_islands == ()  # control


def test_convert_leaves_an_operator_in_float_that_has_no_int8_kernel() -> None:
    made = convert(nets.with_float_op(), "int8_float_io", calibration=[nets.batch(16)], denylisted_ops=["SIN"])
    graph = read_graphs(made.content)[0]
    kinds = [op.kind for op in graph.operators]
    assert kinds.count("SIN") == 1
    assert [graph.tensors[op.inputs[0]].dtype for op in graph.operators if op.kind == "CONV_2D"] == ["int8", "int8"]


def test_convert_with_an_unknown_kind_in_float_says_which_there_are(block: Any) -> None:
    message = r"expected operators of this network in denylisted_ops, got 'CONV_3D': it has ADD, CONCATENATION, CONV_2D"
    with pytest.raises(CompressionError, match=message):
        convert(block, "int8_float_io", calibration=[nets.batch(16)], denylisted_ops=["CONV_3D"])


@pytest.mark.parametrize("quant_type", ["int8", "none", ["int8_float_io", "int16x8"]])
def test_convert_with_kinds_in_float_of_another_type_fails(quant_type: Any) -> None:
    with pytest.raises(CompressionError, match=r"layers left in float need quant type int8_float_io, got .*denylisted"):
        convert(None, quant_type, calibration=[], denylisted_ops=["MEAN"])
