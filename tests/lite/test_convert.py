"""What comes out of `convert`, run on the runtime that devices use."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from cxr_compress.device.interpreter import load_interpreter
from cxr_compress.errors import CompressionError, DataError, UnsupportedLayerError
from cxr_compress.keras2 import keras
from cxr_compress.lite import QUANT_TYPES, LiteModel, convert, freeze
from cxr_compress.lite.lowering import quantize
from tests.lite import nets
from tests.lite.conftest import convert_all, run

ROUNDING = 2.0**-24  # relative error of one float32 operation
HALF = 2.0**-11  # of storing a value as float16


@pytest.fixture(scope="module")
def linear() -> Any:
    # 16 x 16 x 3 inputs: 3072 weights, above the 1024 below which the converter keeps a kernel of "dynamic" in float.
    return nets.linear(16)


@pytest.fixture(scope="module")
def linear_files(linear: Any) -> dict[str, LiteModel]:
    return convert_all(linear, seed=1)


def test_convert_to_float_equals_keras_where_other_weights_do_not(
    chain: Any, chain_files: dict[str, LiteModel]
) -> None:
    images = nets.batch(16, seed=2)
    expected = chain(images, training=False).numpy()
    # Three layers with sums of at most 3*3*8 products, each rounded: 3 * 72 * 2^-24 of values as large as the largest
    # activation (about 10 here), against an output spread of about 2.
    tolerance = 3 * 72 * ROUNDING * 10
    assert np.abs(run(chain_files["none"].content, images) - expected).max() < tolerance
    assert expected.std(axis=0).min() > 100 * tolerance  # the output follows the input
    other = keras.models.clone_model(chain)
    other.set_weights([weight * (1.01 if weight.ndim == 4 else 1) for weight in chain.get_weights()])
    assert np.abs(run(convert(other, "none").content, images) - expected).max() > 10 * tolerance


def _bound(quant_type: str, kernel: np.ndarray, bias: np.ndarray, images: np.ndarray) -> np.ndarray:
    """Six standard deviations (images, 4) of the error that x @ kernel + bias has in a quant type.

    Rounding to a step s errs evenly within +-s/2: variance s^2/12. The errors of the 768 products are independent.
    """
    x, w = images.reshape(len(images), -1).astype(np.float64), kernel.astype(np.float64)
    exact = x @ w + bias
    floats = (len(w) + 2) * ROUNDING * (np.abs(x) @ np.abs(w) + np.abs(bias))  # worst case of float32 sums
    if quant_type == "none":
        return floats
    if quant_type == "fp16":  # every weight errs evenly within +-2^-11 of itself: variance (2^-11 w)^2 / 3
        return floats + 6 * HALF * np.sqrt(((x**2) @ (w**2) + bias**2) / 3)
    if quant_type == "dynamic":  # the input's step follows each image, the kernel has one scale, the output is float
        step_x = 2 * np.abs(x).max(axis=1, keepdims=True) / 255
        step_w, step_y = np.full(4, np.abs(w).max() / 127), 0.0
    elif quant_type == "int16x8":  # symmetric, 32767 codes on either side of 0
        step_x = np.full((len(x), 1), np.abs(x).max() / 32767)
        step_w, step_y = np.abs(w).max(axis=0) / 127, np.abs(exact).max() / 32767
    else:
        step_x = np.full((len(x), 1), (x.max() - x.min()) / 255)
        step_w, step_y = np.abs(w).max(axis=0) / 127, (exact.max() - exact.min()) / 255
    variance = step_x**2 * (w**2).sum(axis=0) + (x**2).sum(axis=1, keepdims=True) * step_w**2
    # The output is rounded twice: to its step, and by the runtime's fixed-point factor.
    return floats + 6 * np.sqrt((variance + 2 * step_y**2) / 12)


@pytest.mark.parametrize("quant_type", QUANT_TYPES)
def test_convert_errs_less_than_the_arithmetic_of_its_quant_type_allows(
    linear: Any, linear_files: dict[str, LiteModel], quant_type: str
) -> None:
    images = nets.batch(32, seed=1)  # the calibration images: inside all ranges, so nothing is clipped
    kernel, bias = linear.layers[-1].get_weights()
    exact = images.reshape(len(images), -1).astype(np.float64) @ kernel + bias
    bound = _bound(quant_type, kernel, bias, images)
    got = run(linear_files[quant_type].content, images)
    assert (np.abs(got - exact) <= bound).all()
    control = images.reshape(len(images), -1) @ (kernel * 1.05) + bias  # weights that are 5 % too large
    assert (np.abs(got - control) > bound).any()


@pytest.mark.parametrize("quant_type", ["int8", "int8_float_io"])
def test_convert_to_int8_follows_the_float_network(
    block: Any, block_files: dict[str, LiteModel], quant_type: str
) -> None:
    images = nets.batch(64, seed=3)
    exact = block(images, training=False).numpy()
    error = run(block_files[quant_type].content, images) - exact
    # 8 tensors are rounded to 8 bits on the way. Were each error uniform within a step of 1/255 of the output's range
    # and carried through unweakened, their sum would have an rms of sqrt(8/12)/255 = 0.32 % of that range; ranges of
    # inner tensors are wider than what they add to the output, hence a factor of 5.
    assert np.sqrt(np.mean(error**2)) < 5 * 0.0032 * np.ptp(exact)
    wrong = run(block_files[quant_type].content, np.roll(images, 1, axis=0)) - exact
    assert np.sqrt(np.mean(wrong**2)) > 10 * 0.0032 * np.ptp(exact)


def test_quantize_with_the_stock_ranges_gives_the_stock_converters_outputs(block: Any) -> None:
    """Our int8 path is TensorFlow's but for the ranges: given the same ones, it gives the same codes."""
    images = nets.batch(32, seed=1)
    frozen = freeze(block).function
    calibrated = _stock([frozen], images, calibrate_only=True)
    stock = run(_stock([frozen], images), images)
    step = np.diff(np.unique(stock)).min()
    assert np.abs(run(quantize(calibrated), images) - stock).max() < step / 2
    # Control: with ranges of images of more contrast the codes differ.
    other = convert(block, "int8", calibration=[images * 2]).content
    assert np.abs(run(other, images) - stock).max() > step / 2


def _stock(functions: list[Any], images: np.ndarray, *, calibrate_only: bool = False) -> bytes:
    import warnings

    import tensorflow as tf

    converter = tf.lite.TFLiteConverter.from_concrete_functions(functions, functions[0])
    converter.optimizations = [tf.lite.Optimize.DEFAULT]
    converter.representative_dataset = lambda: ([image[np.newaxis]] for image in images)
    converter.target_spec.supported_ops = [tf.lite.OpsSet.TFLITE_BUILTINS_INT8]
    converter.inference_input_type = converter.inference_output_type = tf.int8
    converter._experimental_calibrate_only = calibrate_only
    with warnings.catch_warnings():
        # convert_graphdef in tensorflow/lite/python/convert.py warns so on every post-training int8 conversion.
        warnings.filterwarnings("ignore", "Statistics for quantized inputs", UserWarning)
        return bytes(converter.convert())


@pytest.mark.parametrize(
    ("quant_type", "dtype"),
    [
        ("none", np.float32),
        ("fp16", np.float32),
        ("dynamic", np.float32),
        ("int8", np.int8),
        ("int8_float_io", np.float32),
        ("int16x8", np.int16),
    ],
)
def test_convert_gives_the_ends_of_its_quant_type(
    chain_files: dict[str, LiteModel], quant_type: str, dtype: type
) -> None:
    made = chain_files[quant_type]
    model = load_interpreter(made.content).interpreter
    for details in (model.get_input_details(), model.get_output_details()):
        assert [d["dtype"] for d in details] == [dtype]
    assert made.quant_type == quant_type
    assert made.audit.inputs[0].dtype == made.audit.outputs[0].dtype == np.dtype(dtype).name


@pytest.mark.parametrize("quant_type", QUANT_TYPES)
def test_convert_names_the_ends_in_a_signature(chain_files: dict[str, LiteModel], quant_type: str) -> None:
    model = load_interpreter(chain_files[quant_type].content).interpreter
    signature = model.get_signature_list()
    assert signature == {"serving_default": {"inputs": ["image"], "outputs": ["logits"]}}
    runner = model.get_signature_runner("serving_default")
    image = np.zeros((1, 16, 16, 3), runner.get_input_details()["image"]["dtype"])
    assert runner(image=image)["logits"].shape == (1, 4)


def test_convert_to_several_types_gives_what_each_alone_gives(chain: Any, chain_files: dict[str, LiteModel]) -> None:
    assert list(chain_files) == list(QUANT_TYPES)
    images = nets.batch(32, seed=1)
    for name, made in chain_files.items():
        alone = convert(chain, name, calibration=[images], calibration_steps=32)
        assert alone.content == made.content, name


def test_convert_to_several_types_freezes_and_calibrates_once(chain: Any) -> None:
    lines: list[str] = []
    images = nets.batch(16)
    convert(chain, ["none", "int8", "int8_float_io", "int16x8"], calibration=[images], progress=lines.append)
    stages = [line.rsplit(" ", 2)[0] for line in lines]
    assert stages == [
        "freeze",
        "calibration images",
        "float graph",
        "none",
        "answers of the model",
        "none compared with the model",
        "scales folded",
        "calibration on 16 images",
        "ranges by mse",
        "int8",
        "int8 compared with the model",
        "int8_float_io",
        "int8_float_io compared with the model",
        "int16x8",
        "int16x8 compared with the model",
    ]


def test_convert_from_batches_of_any_size_and_any_threads_gives_the_same_bytes(chain: Any) -> None:
    images = nets.batch(16)
    whole = convert(chain, "int8", calibration=[images], num_threads=1)
    split = convert(chain, "int8", calibration=(images[i : i + 3] for i in range(0, 16, 3)), num_threads=2)
    assert whole.content == split.content
    other = convert(chain, "int8", calibration=[images * 2], num_threads=1)
    assert other.content != whole.content  # control: the calibration does reach the file


def test_convert_takes_no_more_than_calibration_steps(chain: Any) -> None:
    images = nets.batch(20)
    capped = convert(chain, "int8", calibration=[images], calibration_steps=16)
    assert capped.content == convert(chain, "int8", calibration=[images[:16]]).content
    assert capped.content != convert(chain, "int8", calibration=[images[4:]]).content  # control: others matter


def test_convert_leaves_the_model_untouched(chain: Any) -> None:
    before, config = [weight.copy() for weight in chain.get_weights()], chain.to_json()
    convert(chain, ["none", "int8"], calibration=[nets.batch(16)])
    assert all(np.array_equal(a, b) for a, b in zip(before, chain.get_weights(), strict=True))
    assert chain.to_json() == config


def test_convert_of_a_dead_layer_still_gives_finite_logits() -> None:
    model = nets.chain()
    dead = next(layer for layer in model.layers if isinstance(layer, keras.layers.BatchNormalization))
    gamma, _, mean, variance = dead.get_weights()
    dead.set_weights([gamma * 0, np.full_like(gamma, -1.0), mean, variance])  # ReLU makes it 0 everywhere
    # Behind it every image is the same, which would be refused.
    made = convert(model, "int8", calibration=[nets.batch(16)], force=True)
    assert np.isfinite(run(made.content, nets.batch(4))).all()


def test_convert_dynamic_stays_below_the_versions_of_new_runtimes_only() -> None:
    # A kernel large enough to be quantized per channel: that is FULLY_CONNECTED version 12, unknown to tflite-runtime.
    versions = {op.kind: op.version for op in convert(nets.linear(16), "dynamic").audit.ops}
    assert versions["FULLY_CONNECTED"] < 12


def test_convert_makes_smaller_files_in_the_order_of_their_bits(linear_files: dict[str, LiteModel]) -> None:
    weights = 3072
    sizes = {name: made.audit.weight_bytes for name, made in linear_files.items()}
    assert sizes["none"] >= weights * 4 > sizes["fp16"] >= weights * 2 > sizes["dynamic"] >= weights
    assert sizes["int8"] == weights + 4 * 4 + 2 * 4  # kernel, 4 int32 biases, the shape that the RESHAPE takes


@pytest.mark.parametrize("quant_type", ["none", "int8"])
@pytest.mark.parametrize("activation", ["sigmoid", "softmax"])
def test_convert_of_probabilities_fails(quant_type: str, activation: str) -> None:
    with pytest.raises(CompressionError, match="expected logits, but the model ends in S"):
        convert(nets.ends_in(activation), quant_type, calibration=[nets.batch(16)])


def test_convert_to_int8_of_a_float_only_layer_fails_and_names_it() -> None:
    model = nets.with_float_op()
    assert convert(model, "none").content  # control: the layer does convert to float
    with pytest.raises(CompressionError, match=r"int8 operators only, but SIN \(operator \d+\) computes float tensor"):
        convert(model, "int8", calibration=[nets.batch(16)])
    with pytest.raises(CompressionError, match="SIN"):
        convert(model, "int8_float_io", calibration=[nets.batch(16)])


def test_convert_of_a_layer_without_a_tflite_operator_fails_and_names_it() -> None:
    import tensorflow as tf

    image = keras.Input((8, 8, 1))
    x = keras.layers.Lambda(tf.math.bessel_i0e)(image)
    model = keras.Model(image, keras.layers.Dense(2)(keras.layers.Flatten()(x)))
    with pytest.raises(UnsupportedLayerError, match=r"no TFLite operator for tf\.BesselI0e"):
        convert(model, "none")


@pytest.mark.parametrize(
    ("quant_type", "message"),
    [
        ("int4", "among none, fp16, dynamic, int8, int8_float_io, int16x8, each once, got int4"),
        (["int8", "int8"], "each once, got int8, int8"),
        ([], "got nothing"),
        ("int8", "int8: value ranges come from calibration images, got none"),
        (["none", "int8", "int8_float_io"], "int8 and int8_float_io: value ranges"),
    ],
)
def test_convert_of_a_wrong_request_fails_before_anything_is_frozen(quant_type: Any, message: str) -> None:
    with pytest.raises(CompressionError, match=message):
        convert(None, quant_type)


def test_convert_with_nan_weights_names_the_activation() -> None:
    model = nets.chain()
    kernel = model.get_layer("second").get_weights()[0]
    kernel[0, 0, 0, 0] = np.nan
    model.get_layer("second").set_weights([kernel])
    with pytest.raises(CompressionError, match=r"activation .*second.* is NaN or infinite on the calibration images"):
        convert(model, "int8", calibration=[nets.batch(16)])


def test_convert_with_calibration_of_another_shape_fails(chain: Any) -> None:
    with pytest.raises(DataError, match=r"float32 \(n, 16, 16, 3\), got float32 \(16, 8, 8, 3\)"):
        convert(chain, "int8", calibration=[nets.batch(16, 8)])
