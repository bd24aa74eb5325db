"""Files with a class activation map: the logits of the file without, and a map whose mean plus bias is the logit."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from cxr_compress.device.interpreter import load_interpreter
from cxr_compress.device.runner import Runner
from cxr_compress.device.spec import PreprocessSpec
from cxr_compress.errors import CompressionError, UnsupportedLayerError
from cxr_compress.keras2 import keras
from cxr_compress.lite import LiteModel, convert, freeze
from cxr_compress.lite.graph.flatbuffer import CAM_NAME, OUTPUT_NAME
from cxr_compress.models.ends import with_cam
from tests.lite import nets
from tests.lite.conftest import run

TYPES = ["none", "fp16", "dynamic", "int8", "int8_float_io"]


@pytest.fixture(scope="module")
def files(block: Any) -> dict[str, LiteModel]:
    return convert(block, TYPES, calibration=[nets.batch(32, seed=1)], calibration_steps=32, head="logits+cam")


def both(content: bytes, images: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    runner = Runner(content)
    logits, maps = zip(*(runner.both(image) for image in images), strict=True)
    return np.stack(logits), np.stack([one for one in maps if one is not None])


def tolerance(runner: Runner, quant_type: str) -> float:
    """How far mean(cam) + bias may be from the logit."""
    if quant_type == "fp16":
        return 1e-3  # Dense and map have the same float16 kernel; sums differ by float32 rounding, the bias by 2^-12
    # A step of the logits is what the reader sees; two of them: the map's own rounding, and that of the mean before
    # the Dense layer. With float ends the step is not stored: it is that of the int8 file. (On DenseNet121 and real
    # images 1.0 at most, 0.4 on average, where no logit is beyond what the calibration images reached.)
    return 2 * runner.output.scale if runner.output.scale else 1e-5


@pytest.mark.parametrize("quant_type", TYPES)
def test_convert_logits_and_cam_agree_in_every_quant_type(
    block: Any, files: dict[str, LiteModel], block_files: dict[str, LiteModel], quant_type: str
) -> None:
    content, images = files[quant_type].content, nets.batch(32, seed=2)
    bias = block.layers[-1].get_weights()[1]
    logits, maps = both(content, images)
    limit = tolerance(Runner(files["int8"].content if "int8" in quant_type else content), quant_type)
    assert np.abs(maps.mean(axis=(1, 2)) + bias - logits).max() <= limit
    # The control: each class with the map of the next.
    assert np.abs(np.roll(maps, 1, axis=-1).mean(axis=(1, 2)) + bias - logits).max() > 10 * limit
    # The map costs the logits nothing: they are those of the file without, to the last bit.
    assert np.array_equal(logits, run(block_files[quant_type].content, images))
    assert maps.shape == (32, 16, 16, 4)


def test_convert_names_and_orders_the_two_outputs(files: dict[str, LiteModel]) -> None:
    for made in files.values():
        assert [tensor.name for tensor in made.audit.outputs] == [OUTPUT_NAME, CAM_NAME]
        runner = load_interpreter(made.content).interpreter.get_signature_runner("serving_default")
        given = runner(image=np.zeros(**{k: runner.get_input_details()["image"][k] for k in ("shape", "dtype")}))
        assert {name: value.shape for name, value in given.items()} == {"logits": (1, 4), "cam": (1, 16, 16, 4)}


def test_convert_int8_with_cam_is_int8_throughout_and_costs_one_small_convolution(
    files: dict[str, LiteModel], block_files: dict[str, LiteModel]
) -> None:
    found, plain = files["int8"].audit, block_files["int8"].audit
    assert not found.float_ops
    assert {tensor.dtype for tensor in (*found.inputs, *found.outputs)} == {"int8"}
    ops = [{(op.kind, op.version): op.count for op in one.ops} for one in (found, plain)]
    assert {kind: ops[0][kind] - ops[1].get(kind, 0) for kind in ops[0] if ops[0][kind] != ops[1].get(kind)} == {
        ("CONV_2D", 3): 1
    }
    assert found.sparsity.weights == plain.sparsity.weights  # a head, which is not pruned
    # Its kernel of 4 x 16 codes, four biases, four scales, and what the graph says of three tensors.
    assert found.file_bytes - plain.file_bytes < 1000


@pytest.mark.parametrize("method", ["percentile", "mse"])
def test_convert_with_cam_clips_no_value_of_the_map(block: Any, method: str) -> None:
    images = nets.batch(32, seed=1)
    made = convert(block, "int8", calibration=[images], calibration_method=method, head="logits+cam")
    exact = with_cam(block)(images, training=False)[1].numpy()
    scale = made.audit.outputs[1].scale
    assert scale is not None
    # An end keeps what occurred, and a map has room for a quarter more: other images have stronger cells.
    assert 255 * scale == pytest.approx(1.25 * np.ptp(exact), rel=1e-3)


def test_convert_with_cam_takes_uint8_pixels(block: Any) -> None:
    spec = PreprocessSpec(16, 16, color="rgb")
    pixels = np.random.default_rng(0).integers(0, 256, (32, 16, 16, 3), np.uint8)
    made = convert(block, ["none", "int8"], calibration=[pixels], pixels=spec, head="logits+cam")
    bias = block.layers[-1].get_weights()[1]
    for name, one in made.items():
        assert one.audit.inputs[0].dtype == "uint8"
        logits, maps = both(one.content, pixels)
        limit = 1e-5 if name == "none" else 2 * (one.audit.outputs[0].scale or 0.0)
        assert np.abs(maps.mean(axis=(1, 2)) + bias - logits).max() <= limit


def test_convert_of_a_model_that_has_the_map_keeps_it(block: Any, files: dict[str, LiteModel]) -> None:
    frozen = freeze(with_cam(block))
    assert (frozen.output_shape, frozen.cam_shape) == ((1, 4), (1, 16, 16, 4))
    for one in (frozen, with_cam(block)):
        assert convert(one, "none", head="logits+cam").content == files["none"].content


def test_convert_with_an_unknown_head_or_a_frozen_function_without_the_map_is_refused(block: Any) -> None:
    with pytest.raises(CompressionError, match=r"expected head .* to be one of logits, logits\+cam; got 'softmax'"):
        convert(block, "none", head="softmax")
    with pytest.raises(CompressionError, match="needs a Keras model, in which the last feature map is known"):
        convert(freeze(block), "none", head="logits+cam")
    two = keras.Model(block.input, [block.output, block.layers[-2].output])
    with pytest.raises(UnsupportedLayerError, match="expected one input and one output, got 1 and 2"):
        freeze(two)
