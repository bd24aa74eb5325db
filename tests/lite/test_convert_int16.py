"""int16x8: 16 bits for what flows, 8 for the weights."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from cxr_compress.device.preprocess import normalize
from cxr_compress.device.runner import Runner
from cxr_compress.device.spec import PreprocessSpec
from cxr_compress.errors import CompressionError, UnsupportedLayerError
from cxr_compress.lite import LiteModel, convert, freeze, layer_snr
from cxr_compress.lite.graph.flatbuffer import read_graphs
from tests.lite import nets
from tests.lite.conftest import run


def stock(model: Any, images: np.ndarray) -> bytes:
    """TensorFlow's own int16x8, with its own calibrator."""
    import tensorflow as tf

    function = freeze(model).function
    converter = tf.lite.TFLiteConverter.from_concrete_functions([function], function)
    converter.optimizations = [tf.lite.Optimize.DEFAULT]
    converter.representative_dataset = lambda: ([image[np.newaxis]] for image in images)
    converter.target_spec.supported_ops = [tf.lite.OpsSet.EXPERIMENTAL_TFLITE_BUILTINS_ACTIVATIONS_INT16_WEIGHTS_INT8]
    converter.inference_input_type = converter.inference_output_type = tf.int16
    with warnings.catch_warnings():
        # convert_graphdef in tensorflow/lite/python/convert.py warns so on every post-training conversion.
        warnings.filterwarnings("ignore", "Statistics for quantized inputs", UserWarning)
        return bytes(converter.convert())


@pytest.mark.parametrize("build", [nets.chain, nets.dense_block, nets.depthwise])
def test_convert_to_int16x8_gives_the_stock_converters_file(build: Callable[[], Any]) -> None:
    model, images = build(), nets.batch(32, seed=1)
    ours, theirs = convert(model, "int16x8", calibration=[images], fold_scales=False), stock(model, images)
    kinds = [[(op.kind, op.version) for op in read_graphs(content)[0].operators] for content in (ours.content, theirs)]
    assert kinds[0] == kinds[1]
    here, there = (Runner(content).stored(images).astype(np.int64) for content in (ours.content, theirs))
    # The calibrators sum float32 in different orders: scales differ by some 1e-6, a code of up to 32767 by less than 1
    # of that alone, and by one where it lay between two.
    assert np.abs(here - there).max() <= 1
    assert np.abs(here - np.roll(there, 1, axis=0)).max() > 1000  # control: another image


def test_convert_to_int16x8_stores_what_it_says(block_files: dict[str, LiteModel]) -> None:
    graph = read_graphs(block_files["int16x8"].content)[0]
    activations = graph.activations()
    assert {tensor.dtype for tensor in activations} == {"int16"}
    assert {tensor.zero_point for tensor in activations} == {(0,)}
    kernels = [graph.tensors[op.inputs[1]] for op in graph.operators if op.kind in ("CONV_2D", "FULLY_CONNECTED")]
    assert {kernel.dtype for kernel in kernels} == {"int8"}
    assert [len(kernel.scale) for kernel in kernels] == [8, 8, 4]  # one a filter
    biases = [graph.tensors[op.inputs[2]] for op in graph.operators if op.kind in ("CONV_2D", "FULLY_CONNECTED")]
    assert {bias.dtype for bias in biases} == {"int64"}
    assert block_files["int16x8"].audit.kernel_scales.per_channel == 3


def test_convert_to_int16x8_errs_as_8_bit_weights_do_and_no_more(block: Any, block_files: dict[str, LiteModel]) -> None:
    images = nets.batch(64, seed=3)
    exact = block(images, training=False).numpy()
    error = {name: run(block_files[name].content, images) - exact for name in ("int8", "int16x8")}
    rms = {name: float(np.sqrt(np.mean(np.square(found)))) for name, found in error.items()}
    # What is left are the weights, rounded to 127 steps: a share of 1/(127 * sqrt(12)) of the largest each, 0.23 %.
    assert rms["int16x8"] < 0.003 * np.ptp(exact)
    assert rms["int16x8"] < rms["int8"] / 2


def test_convert_to_int16x8_takes_all_that_occurred_whatever_the_method(chain: Any) -> None:
    images = [nets.batch(32, seed=1)]
    plain = convert(chain, ["int8", "int16x8"], calibration=images)
    clipped = convert(chain, ["int8", "int16x8"], calibration=images, calibration_method="percentile", percentile=95.0)
    assert clipped["int16x8"].content == plain["int16x8"].content
    assert clipped["int8"].content != plain["int8"].content  # control: the method does reach int8


def test_convert_to_int16x8_of_an_operator_without_int16_fails_and_names_it() -> None:
    model = nets.with_float_op()
    with pytest.raises(UnsupportedLayerError, match=r"int16x8 has no kernel for SIN \(layer sine\): export int8_float"):
        convert(model, "int16x8", calibration=[nets.batch(16)])


def test_convert_to_int16x8_with_layers_in_float_fails() -> None:
    message = "layers left in float need quant type int8_float_io, got int16x8, int8_float_io: int16x8 promises integer"
    with pytest.raises(CompressionError, match=message):
        convert(None, ["int16x8", "int8_float_io"], calibration=[], float_layers=["growth"])


def test_convert_to_int16x8_takes_pixels_in_integers() -> None:
    spec = PreprocessSpec(height=16, width=16, channels=3, input="float32", mean=(0.4, 0.5, 0.6), std=(0.2, 0.3, 0.25))
    model, pixels = nets.chain(), np.random.default_rng(0).integers(0, 256, (32, 16, 16, 1), np.uint8)
    made = convert(model, "int16x8", calibration=[pixels], pixels=spec)
    (image,) = made.audit.inputs
    assert (image.dtype, image.shape, image.scale, image.zero_point) == ("uint8", (1, 16, 16, 1), 1.0, 0)
    assert not made.audit.float_ops
    exact = model(normalize(pixels[..., 0], spec), training=False).numpy()
    got = Runner(made.content)(pixels)
    # As above: 8-bit weights, here also those of the normalization.
    assert np.abs(got - exact).max() < 0.02 * np.ptp(exact)
    assert np.abs(Runner(made.content)(255 - pixels) - exact).max() > 0.1 * np.ptp(exact)  # control


def test_layer_report_of_int16x8_is_far_better_than_that_of_int8(block_files: dict[str, LiteModel]) -> None:
    images, floats = nets.batch(4, seed=1), block_files["none"].content
    worst = {name: layer_snr(floats, block_files[name].content, images)[0].local_db for name in ("int8", "int16x8")}
    assert worst["int16x8"] > worst["int8"] + 5
