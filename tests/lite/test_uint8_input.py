"""Files that take uint8 pixels give what files that take normalized floats give; controls show that it could differ."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cxr_compress.device.classifier import Classifier
from cxr_compress.device.modelfile import pack_model
from cxr_compress.device.modelinfo import ModelInfo
from cxr_compress.device.preprocess import PreprocessSpec, normalize, pixel_table
from cxr_compress.device.runner import Runner
from cxr_compress.device.spec import PRESETS
from cxr_compress.errors import CompressionError, DataError, ModelFileError
from cxr_compress.keras2 import keras
from cxr_compress.lite import QUANT_TYPES, LiteModel, convert
from cxr_compress.lite.freeze import freeze
from cxr_compress.lite.graph.flatbuffer import read_graphs
from cxr_compress.lite.inputs_outputs import normalization, take_pixels
from tests.lite import nets

SPEC = PreprocessSpec(16, 16)
PIXELS = replace(SPEC, input="uint8")
INT8 = ("int8", "int8_float_io")


def pictures(count: int, seed: int = 0, *shape: int) -> np.ndarray:
    """uint8 (count, 16, 16) of different contrast."""
    rng = np.random.default_rng(seed)
    shape = shape or (16, 16)
    scale = rng.uniform(0.2, 1.0, (count, *(1 for _ in shape)))
    return (rng.integers(0, 256, (count, *shape)) * scale).astype(np.uint8)


@pytest.fixture(scope="module")
def model() -> Any:
    return nets.dense_block()


@pytest.fixture(scope="module")
def fed_floats(model: Any) -> dict[str, LiteModel]:
    return convert(model, list(QUANT_TYPES), calibration=[normalize(pictures(32), SPEC)])


@pytest.fixture(scope="module")
def fed_pixels(model: Any) -> dict[str, LiteModel]:
    return convert(model, list(QUANT_TYPES), calibration=[normalize(pictures(32), PIXELS)], pixels=SPEC)


def outputs(made: LiteModel, spec: PreprocessSpec, images: np.ndarray) -> np.ndarray:
    return Runner(made.content)(normalize(images, spec))


def tolerance(quant_type: str, step: float, spread: float) -> float:
    """How far the two files of one type may be apart; `step`: one LSB of the int8 output."""
    if quant_type in INT8:
        # Both files round a normalized image to the same int8 codes, the pixel file in integers: a value on the border
        # of two codes may fall to the other side, one step of 256 in a few pixels, which the mean over 256 pixels makes
        # small. It can move the output over one border, and the outputs' own rounding over another.
        return 2 * step + 1e-6
    # Without quantized activations float32 rounding alone is left. (Where "dynamic" quantizes a layer's input, that can
    # move a value to the next code: in a DenseNet121 2.8e-4 of the spread at most on 104 images; this net has no such.)
    # float16 has 11 bits: kernel and bias of the normalization are off by up to 2**-12 of their size, 2**-11 together,
    # of an input of at most 2.7 standard deviations; the rest of the network passes that on.
    return spread * (2**-11 * 2.7 if quant_type == "fp16" else 1e-4)


@pytest.mark.parametrize("quant_type", QUANT_TYPES)
def test_uint8_input_gives_the_outputs_of_the_normalized_input(
    fed_floats: dict[str, LiteModel], fed_pixels: dict[str, LiteModel], quant_type: str
) -> None:
    images = pictures(64, seed=5)
    expected = outputs(fed_floats[quant_type], SPEC, images)
    actual = outputs(fed_pixels[quant_type], PIXELS, images)
    spread = float(np.ptp(expected))
    step = Runner(fed_pixels["int8"].content).output.scale
    assert step is not None
    allowed = tolerance(quant_type, step, spread)
    assert np.abs(actual - expected).max() <= allowed
    # Control: pixels that were normalized already, as a device that does it twice would feed them, are far off.
    twice = np.clip(normalize(images, SPEC)[..., :1], 0, 255).astype(np.uint8)
    assert np.abs(Runner(fed_pixels[quant_type].content)(twice) - expected).max() > 0.1 * spread > allowed


@pytest.mark.parametrize("quant_type", QUANT_TYPES)
def test_uint8_input_control_the_same_network_without_normalization_differs(
    model: Any, fed_floats: dict[str, LiteModel], quant_type: str
) -> None:
    raw = PreprocessSpec.preset("raw", 16, 16)
    skipped = convert(model, quant_type, calibration=[normalize(pictures(32), PIXELS)], pixels=raw)
    images = pictures(16, seed=5)
    expected = outputs(fed_floats[quant_type], SPEC, images)
    assert np.abs(outputs(skipped, PIXELS, images) - expected).max() > 0.5 * np.ptp(expected)


@pytest.mark.parametrize("quant_type", QUANT_TYPES)
def test_uint8_input_is_one_channel_of_uint8_pixels(fed_pixels: dict[str, LiteModel], quant_type: str) -> None:
    made = fed_pixels[quant_type]
    runner = Runner(made.content)
    assert (runner.input_shape, runner.input.dtype, runner.input.takes_pixels) == ((1, 16, 16, 1), np.uint8, True)
    assert runner.output.dtype == {"int8": np.int8, "int16x8": np.int16}.get(quant_type, np.float32)
    graph = read_graphs(made.content)[0]
    first = next(op for op in graph.operators if graph.inputs[0] in op.inputs)
    assert first.kind == ("QUANTIZE" if quant_type in (*INT8, "int16x8") else "CAST")
    if quant_type in INT8:
        codes = graph.tensors[first.outputs[0]]
        assert (codes.dtype, codes.scale, codes.zero_point) == ("int8", (1.0,), (-128,))
    assert made.audit.float_islands == ()
    assert {name: op.version for op in made.audit.ops if (name := op.kind) in ("CAST", "QUANTIZE")} == {first.kind: 1}


def test_uint8_input_fixes_the_pixel_range_whatever_calibrates(model: Any) -> None:
    dark = (pictures(32) // 4).astype(np.uint8)
    made = convert(model, "int8", calibration=[normalize(dark, PIXELS)], pixels=SPEC)
    assert Runner(made.content).input.takes_pixels
    other = convert(model, "int8", calibration=[normalize(pictures(32), PIXELS)], pixels=SPEC)
    assert made.content != other.content  # control: the images do reach the other ranges


@pytest.mark.parametrize("preset", PRESETS)
def test_normalization_is_the_table_of_normalize(preset: str) -> None:
    spec = PreprocessSpec.preset(preset, 16, 16)
    kernel, bias = normalization(spec)
    pixels = np.arange(256, dtype=np.float64)[:, np.newaxis]
    # kernel and bias are rounded to float32, so is the table: 2**-24 of the largest term each.
    largest = np.abs(bias).max() + 255 * np.abs(kernel).max()
    np.testing.assert_allclose(pixels * kernel[0, 0, 0] + bias, pixel_table(spec), atol=3 * 2**-24 * largest)


@pytest.mark.parametrize("order", ["rgb", "bgr"])
def test_uint8_input_of_color_keeps_the_channels_in_order(order: str) -> None:
    model = nets.chain()
    spec = PreprocessSpec(16, 16, color="rgb", mean=(0.1, 0.5, 0.7), std=(0.2, 0.3, 0.5), order=order)
    photos = pictures(24, 3, 16, 16, 3)
    fed = replace(spec, input="uint8")
    floats = outputs(convert(model, "none"), spec, photos)
    made = convert(model, ["none", "int8"], calibration=[normalize(photos, fed)], pixels=spec)
    assert Runner(made["none"].content).input_shape == (1, 16, 16, 3)
    spread = np.ptp(floats)
    np.testing.assert_allclose(outputs(made["none"], fed, photos), floats, atol=1e-4 * spread)
    swapped = outputs(made["none"], fed, photos[..., ::-1])
    assert np.abs(swapped - floats).max() > 0.05 * spread  # control: the order matters
    reference = outputs(convert(model, "int8", calibration=[normalize(photos, spec)]), spec, photos)
    scale = Runner(made["int8"].content).output.scale
    assert scale is not None
    assert np.abs(outputs(made["int8"], fed, photos) - reference).max() <= 2 * scale + 1e-6


def test_uint8_input_keeps_zero_padding_on_the_mean(model: Any) -> None:
    # An image of one level: wherever padding was taken for black, the border would differ from the middle.
    padded = keras.Sequential([keras.Input((16, 16, 3)), keras.layers.Conv2D(2, 3, padding="same"),
                               keras.layers.Flatten()])  # fmt: skip
    picture = np.full((1, 16, 16), 200, np.uint8)
    expected = padded(normalize(picture, SPEC), training=False).numpy()
    made = convert(padded, "none", pixels=SPEC)
    np.testing.assert_allclose(outputs(made, PIXELS, picture), expected, atol=1e-4 * np.ptp(expected))
    assert np.abs(np.diff(expected.reshape(16, 16, 2)[:, 8, 0])).max() > 1e-3  # control: the border does differ


def test_take_pixels_of_another_size_is_refused(model: Any) -> None:
    with pytest.raises(CompressionError, match=r"the network takes \(16, 16, 3\), the preprocessing makes \(8, 8, 3\)"):
        take_pixels(freeze(model), PreprocessSpec(8, 8))


def test_take_pixels_remembers_a_last_sigmoid() -> None:
    assert take_pixels(freeze(nets.ends_in("sigmoid")), SPEC).last_activation == "Sigmoid"


def test_uint8_input_refuses_normalized_calibration(model: Any) -> None:
    with pytest.raises(DataError, match=r"expected calibration batches uint8 \(n, 16, 16, 1\), got float32"):
        convert(model, "int8", calibration=[normalize(pictures(32), SPEC)], pixels=SPEC)


def info(spec: PreprocessSpec, quant_type: str) -> ModelInfo:
    one = (1.0,) * 4
    return ModelInfo("m", tuple("abcd"), spec, one, (0.0,) * 4, (0.5,) * 4, "none", quant_type)


@pytest.mark.parametrize("quant_type", ["none", "int8"])
def test_classifier_feeds_pixels_where_the_file_says_so(
    tmp_path: Path, fed_floats: dict[str, LiteModel], fed_pixels: dict[str, LiteModel], quant_type: str
) -> None:
    made = {"floats": (fed_floats, SPEC), "pixels": (fed_pixels, PIXELS)}
    for name, (files, spec) in made.items():
        (tmp_path / name).write_bytes(pack_model(files[quant_type].content, info(spec, quant_type)))
    floats, pixels = Classifier(tmp_path / "floats"), Classifier(tmp_path / "pixels")
    picture = pictures(1, 9, 40, 30)[0]
    step = pixels.output_scale or 0.0
    difference = np.abs(pixels.predict(picture).logits - floats.predict(picture).logits).max()
    assert difference <= 2 * step + 1e-5
    with pytest.raises(DataError, match=r"expected uint8 of shape \(n, \*\(16, 16, 1\)\), got float32"):
        pixels.logits(normalize(pictures(1), SPEC))


def test_classifier_refuses_a_float_file_that_says_pixels(tmp_path: Path, fed_floats: dict[str, LiteModel]) -> None:
    (tmp_path / "x").write_bytes(pack_model(fed_floats["none"].content, info(PIXELS, "none")))
    with pytest.raises(ModelFileError, match="the model takes float32, its own metadata says uint8 pixels"):
        Classifier(tmp_path / "x")
