"""Calibration images that do not look as the preprocessing makes them."""

from __future__ import annotations

import numpy as np
import pytest

from cxr_compress.device.image_checks import ImageStatistics
from cxr_compress.device.preprocess import normalize
from cxr_compress.device.spec import PRESETS, PreprocessSpec
from cxr_compress.lite import convert
from cxr_compress.lite.calibration import CalibrationWarning, ExpectedInput, calibration_warnings
from tests.lite import nets


def pictures(count: int = 16, *, level: float = 120.0, spread: float = 60.0, rgb: bool = False) -> np.ndarray:
    """uint8 images (count, 16, 16[, 3]) of a brightness and a spread."""
    shape = (count, 16, 16, 3) if rgb else (count, 16, 16)
    values = np.random.default_rng(0).normal(level, spread, shape)
    return values.clip(0, 255).astype(np.uint8)


def spec_of(preset: str, **fields: str) -> PreprocessSpec:
    return PreprocessSpec.preset(preset, 16, 16, **fields)


@pytest.mark.parametrize("preset", PRESETS)
@pytest.mark.parametrize("kind", ["float32", "uint8"])
def test_calibration_warnings_of_images_as_trained_is_nothing(preset: str, kind: str) -> None:
    color = "gray" if PRESETS[preset].get("channels") == 1 else "rgb"
    spec = spec_of(preset, color=color, input=kind)
    pixels = pictures(rgb=color == "rgb")
    expected = ExpectedInput.of(spec, ImageStatistics.of(pictures(64, level=130, spread=55, rgb=color == "rgb")))
    assert expected.mean
    assert calibration_warnings(normalize(pixels, spec), expected) == ()


def test_expected_input_of_a_preprocessing_is_what_normalizing_gives() -> None:
    spec = spec_of("caffe", color="rgb")  # blue first, three means
    pixels = pictures(64, rgb=True)
    values = normalize(pixels, spec).reshape(-1, 3)
    expected = ExpectedInput.of(spec, ImageStatistics.of(pixels))
    # The statistics are rounded to 1e-6 of pixel / 255, here steps of 2.6e-4; float32 sums of 16384 values err by more.
    np.testing.assert_allclose(expected.mean, values.mean(axis=0), rtol=1e-4, atol=1e-3)
    np.testing.assert_allclose(expected.std, values.std(axis=0), rtol=1e-4, atol=1e-3)
    black, white = (normalize(np.full((16, 16, 3), level, np.uint8), spec)[0, 0] for level in (0, 255))
    np.testing.assert_allclose((expected.low, expected.high), (black, white))


def test_calibration_warnings_of_pixels_that_were_not_normalized() -> None:
    spec = spec_of("imagenet_torch")
    pixels = np.repeat(pictures()[..., np.newaxis], 3, axis=3).astype(np.float32)
    (line,) = calibration_warnings(pixels, ExpectedInput.of(spec))
    assert "hold values from 0 to 255, the preprocessing gives -2.118 to 2.64 only" in line
    assert "they look like pixels of 0 to 255 that were not normalized" in line


def test_calibration_warnings_of_images_normalized_twice() -> None:
    spec = spec_of("imagenet_torch")
    once = normalize(pictures(), spec)
    twice = ((once - np.asarray(spec.mean)) / np.asarray(spec.std)).astype(np.float32)
    (line,) = calibration_warnings(twice, ExpectedInput.of(spec))
    assert "they look normalized twice" in line
    assert "% of the values are outside" in line


def test_calibration_warnings_of_other_wild_values_guess_nothing() -> None:
    (line,) = calibration_warnings(nets.batch(4) * 40.0, ExpectedInput.of(spec_of("imagenet_torch")))
    assert "are outside):" in line


def test_calibration_warnings_of_images_that_hardly_vary() -> None:
    spec = spec_of("unit")
    (line,) = calibration_warnings(normalize(pictures(), spec) / np.float32(255), ExpectedInput.of(spec))
    assert line.startswith("the calibration images hardly vary: their standard deviation is 0.000")
    # At the limit: a spread of 2 % of the range; a little more is enough.
    half = np.indices((4, 16, 16, 3)).sum(axis=0) % 2
    for spread, found in ((0.0199, 1), (0.0201, 0)):
        values = (0.5 + spread * (2 * half - 1)).astype(np.float32)
        assert len(calibration_warnings(values, ExpectedInput.of(spec))) == found


@pytest.mark.parametrize("other", ["unit", "tf"])
def test_calibration_warnings_of_another_preset_than_in_training_gives_the_numbers(other: str) -> None:
    """Its values are all possible: only the training images tell."""
    trained, pixels = spec_of("imagenet_torch"), pictures(64)
    images = normalize(pixels, spec_of(other))
    assert calibration_warnings(images, ExpectedInput.of(trained)) == ()
    lines = calibration_warnings(images, ExpectedInput.of(trained, ImageStatistics.of(pixels)))
    values = images[..., 0]
    assert f"have mean {values.mean():.3g} and standard deviation {values.std():.3g} (channel 0)" in lines[0]
    assert "the training images had" in lines[0]


def test_calibration_warnings_of_darker_images_than_in_training() -> None:
    spec = spec_of("tf")
    expected = ExpectedInput.of(spec, ImageStatistics.of(pictures(64, level=130, spread=40)))
    assert calibration_warnings(normalize(pictures(level=70, spread=40), spec), expected)
    assert calibration_warnings(normalize(pictures(level=120, spread=40), spec), expected) == ()


def test_convert_warns_of_such_images_and_goes_on() -> None:
    images = nets.batch(16) * 100.0
    expected = ExpectedInput.of(spec_of("imagenet_torch"))
    with pytest.warns(CalibrationWarning, match="the preprocessing gives -2.118 to 2.64 only"):
        made = convert(nets.chain(), "int8", calibration=[images], calibration_steps=16, expected_input=expected)
    assert made.audit.inputs[0].dtype == "int8"
