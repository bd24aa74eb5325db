from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest

from cxr_compress.errors import CompressionError, ModelFileError
from cxr_compress.lite import LiteModel, audit, convert, freeze, require_integer
from cxr_compress.lite.inputs_outputs import InputOutput, input_output_of
from cxr_compress.lite.int8.ranges import measure_ranges, write_ranges
from cxr_compress.lite.lowering import lower, quantize
from tests.lite import nets

FLOATS = InputOutput("float32", "float32")


@pytest.fixture(scope="module")
def island() -> bytes:
    """An int8 file with a float operator in its middle, made past the check of `convert`.

    conv int8 - DEQUANTIZE - SIN float32 - QUANTIZE - conv int8
    """
    graph = lower(freeze(nets.with_float_op()), "none")
    return quantize(write_ranges(graph, measure_ranges(graph, nets.batch(16))))


def test_audit_of_a_known_network_reads_as_written_down(chain_files: dict[str, LiteModel]) -> None:
    text = chain_files["none"].audit.to_text()
    weights = (3 * 3 * 3 * 8 + 8 + 3 * 3 * 8 * 16 + 16 + 16 * 4 + 4) * 4  # kernels and biases
    axes = 2 * 4  # of the MEAN
    expected = [
        f"{len(chain_files['none'].content)} bytes, {weights + axes} of them weights",
        "input   image: 1 x 16 x 16 x 3 float32",
        "output  logits: 1 x 4 float32",
        "op         2 CONV_2D v1",
        "op         1 FULLY_CONNECTED v1",
        "op         1 MEAN v1",
        "runs on litert, tflite-runtime-2.14",
        "dtype     11 float32",
        "dtype      1 int32",
        "answers 32 different a finding",
        f"zeros   0 of {3 * 3 * 3 * 8 + 3 * 3 * 8 * 16} kernel weights (0.00%)",
        "left out of the zeros: 3 x bias",
        "left out of the zeros: 1 x head: makes the output of the model",
    ]
    assert text.splitlines() == expected


def test_audit_of_int8_has_scales_at_both_ends(chain: Any, chain_files: dict[str, LiteModel]) -> None:
    found = chain_files["int8"].audit
    calibration = nets.batch(32, seed=1)
    (image,), (logits,) = found.inputs, found.outputs
    # 256 codes over the range of the calibration images.
    assert image.scale == pytest.approx((calibration.max() - calibration.min()) / 255, rel=1e-5)
    outputs = chain(calibration, training=False).numpy()
    assert logits.scale == pytest.approx((outputs.max() - outputs.min()) / 255, rel=1e-3)
    for end in (image, logits):
        assert end.zero_point is not None
        assert -128 <= end.zero_point <= 127


def test_audit_of_float_files_has_no_scales(chain_files: dict[str, LiteModel]) -> None:
    for name in ("none", "fp16", "dynamic", "int8_float_io"):
        found = chain_files[name].audit
        assert [end.scale for end in found.inputs + found.outputs] == [None, None], name


def test_audit_counts_a_batch_norm_behind_a_concatenation(block_files: dict[str, LiteModel]) -> None:
    counts = {op.kind: op.count for op in block_files["none"].audit.ops}
    # The converter folds the scale of the norm that only a convolution feeds; the one behind the concat stays.
    assert counts["CONV_2D"] == 2
    assert counts["CONCATENATION"] == 1
    assert counts["MUL"] == counts["ADD"] == 2


def test_audit_finds_a_float_island_and_names_it(island: bytes) -> None:
    found = audit(island)
    assert [op.kind for op in found.float_islands] == ["DEQUANTIZE", "SIN", "QUANTIZE"]
    assert found.float_islands == found.float_ops
    assert "float   SIN (operator 2) on " in found.to_text()


def test_require_integer_of_a_float_island_fails(island: bytes) -> None:
    with pytest.raises(
        CompressionError, match=r"but SIN \(operator 2\) computes float tensor '.*': replace that layer"
    ):
        require_integer(audit(island))


@pytest.mark.parametrize("name", ["int8", "int8_float_io"])
def test_require_integer_of_a_whole_int8_file_passes(block_files: dict[str, LiteModel], name: str) -> None:
    found = block_files[name].audit
    assert found.float_islands == ()
    require_integer(found, input_output=input_output_of(name))


def test_require_integer_checks_the_ends(block_files: dict[str, LiteModel]) -> None:
    with pytest.raises(CompressionError, match="expected an input of int8, got float32 at 'image'"):
        require_integer(block_files["int8_float_io"].audit)
    with pytest.raises(CompressionError, match="expected an input of float32, got int8 at 'image'"):
        require_integer(block_files["int8"].audit, input_output=FLOATS)


@pytest.mark.parametrize("name", ["none", "fp16", "dynamic"])
def test_require_integer_of_a_float_file_fails(block_files: dict[str, LiteModel], name: str) -> None:
    found = block_files[name].audit
    assert found.float_islands == ()  # a float file has no islands: it is all float
    with pytest.raises(CompressionError, match="expected int8 operators only, but CONV_2D"):
        require_integer(found, input_output=FLOATS)


def test_audit_finds_dynamic_shapes() -> None:
    import tensorflow as tf

    @tf.function(input_signature=[tf.TensorSpec((None, 8, 8, 3), tf.float32)])
    def double(x: Any) -> Any:
        return x * 2.0

    function = double.get_concrete_function()
    content = tf.lite.TFLiteConverter.from_concrete_functions([function], function).convert()
    assert len(audit(content).dynamic_tensors) == 2
    assert audit(convert(nets.linear(), "none").content).dynamic_tensors == ()  # control: ours are static


def test_audit_counts_a_shared_buffer_once(chain_files: dict[str, LiteModel]) -> None:
    found = chain_files["none"].audit
    assert found.weight_bytes < found.file_bytes
    constants = sum(len(bytes(4)) * _size(t.shape) for t in found.tensors if t.dtype == "float32")
    assert found.weight_bytes < constants  # which counts the activations too


def _size(shape: tuple[int, ...]) -> int:
    size = 1
    for length in shape:
        size *= length
    return size


def test_audit_to_dict_is_json_and_says_the_islands(island: bytes) -> None:
    document = json.loads(json.dumps(audit(island).to_dict()))
    assert [op["kind"] for op in document["float_islands"]] == ["DEQUANTIZE", "SIN", "QUANTIZE"]
    assert document["sparsity"]["fraction"] == pytest.approx(audit(island).sparsity.fraction)
    assert "tensors" not in document


def test_audit_counts_its_float_operators_only_where_integers_surround_them(island: bytes) -> None:
    found = audit(island)
    assert replace(found, has_integer_activations=False).float_islands == ()
    assert found.has_integer_activations


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "expected a .tflite flatbuffer"),
        (b"PK\x03\x04" * 10, "expected a .tflite flatbuffer .* got b'PK"),
        (b"\x1c\x00\x00\x00TFL3" + b"\xff" * 64, "damaged or cut off"),
        (b"\xff\xff\xff\x7fTFL3", "damaged or cut off"),
    ],
)
def test_audit_of_something_else_fails(content: bytes, message: str) -> None:
    with pytest.raises(ModelFileError, match=message):
        audit(content)


@pytest.mark.parametrize("share", [0.05, 0.5, 0.95])
def test_audit_of_a_cut_off_file_fails(chain_files: dict[str, LiteModel], share: float) -> None:
    content = chain_files["int8"].content
    with pytest.raises(ModelFileError, match=r"damaged or cut off|contradicts itself"):
        audit(content[: int(len(content) * share)])


def test_audit_says_which_kernels_share_one_scale() -> None:
    # linear(16): 3072 weights, above the 1024 below which "dynamic" keeps a kernel in float. Its dense layer has one
    # scale for all filters, so that tflite-runtime 2.14 loads it.
    made = convert(nets.linear(16), ["none", "dynamic", "int8"], calibration=[nets.batch(16)])
    assert made["dynamic"].audit.kernel_scales.per_tensor == ("logits",)
    assert (
        "scales  0 of 1 kernels with a scale per filter, one scale for all: logits" in made["dynamic"].audit.to_text()
    )
    assert made["int8"].audit.kernel_scales.per_channel == 1
    assert made["int8"].audit.kernel_scales.per_tensor == ()
    assert "scales" not in made["none"].audit.to_text()


def test_audit_of_bytes_alone_knows_no_answers_and_of_an_export_does(chain_files: dict[str, LiteModel]) -> None:
    made = chain_files["int8"]
    assert audit(made.content).output_codes == ()
    assert len(made.audit.output_codes) == 4
    assert all(1 < codes <= 32 for codes in made.audit.output_codes)
    low, high = min(made.audit.output_codes), max(made.audit.output_codes)
    assert f"answers {low} to {high} different a finding" in made.audit.to_text()
    assert made.audit.to_dict()["output_codes"] == made.audit.output_codes


def test_audit_to_dict_says_who_runs_each_operator(chain_files: dict[str, LiteModel]) -> None:
    document = json.loads(json.dumps(chain_files["int16x8"].audit.to_dict()))
    assert document["runtimes"] == ["litert", "tflite-runtime-2.14"]
    assert document["too_new"] == []
    assert {op["kind"]: op["runtimes"] for op in document["ops"]}["CONV_2D"] == ["litert", "tflite-runtime-2.14"]


def test_require_integer_of_int16x8_says_int16() -> None:
    found = convert(nets.chain(), "none").audit
    message = r"expected int16 operators only, but CONV_2D .* by one with an int16 kernel"
    with pytest.raises(CompressionError, match=message):
        require_integer(found, input_output=input_output_of("int16x8"))
