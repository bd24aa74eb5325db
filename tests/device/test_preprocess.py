from __future__ import annotations

import warnings
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cxr_compress.device.preprocess import (
    COLORED_SHARE_LIMIT,
    ImageGateWarning,
    PreprocessSpec,
    colored_share,
    load_uint8,
    normalize,
    preprocess,
    resize_uint8,
    to_uint8,
)
from cxr_compress.errors import DataError
from tests.device.images import color_photo, draw_image, jpeg, png

GRAY = PreprocessSpec(height=16, width=20)
RGB = PreprocessSpec(height=16, width=20, color="rgb")


def reference_area(image: np.ndarray, factor: int) -> tuple[np.ndarray, np.ndarray]:
    """Mean over factor x factor pixels, and where it lies halfway between two levels (rounded either way by OpenCV)."""
    rows, columns = image.shape[0] // factor, image.shape[1] // factor
    blocks = image.astype(np.int64).reshape(rows, factor, columns, factor)
    sums = blocks.sum(axis=(1, 3))
    return np.rint(sums / factor**2), (2 * sums) % (2 * factor**2) == factor**2


def assert_equal_but_ties(actual: np.ndarray, expected: np.ndarray, ties: np.ndarray) -> None:
    difference = np.abs(actual.astype(int) - expected.astype(int))
    assert difference[~ties].max(initial=0) == 0
    assert difference.max() <= 1


def reference_normal(pixel: int, channel: int, spec: PreprocessSpec) -> float:
    """(pixel / 255 - mean) / std in exact fractions."""
    return float((Fraction(pixel, 255) - Fraction(spec.mean[channel])) / Fraction(spec.std[channel]))


# --- reference outputs: file -> model input
# ------------------------------------------------------------------------------


def reference_image() -> np.ndarray:
    """4 x 4 pixels whose 2 x 2 means are 10, 60, 128, 255."""
    return np.array([[0, 10, 50, 60], [10, 20, 70, 60], [128, 128, 255, 255], [128, 128, 255, 255]], np.uint8)


REFERENCE_PIXELS = [[10, 60], [128, 255]]


@pytest.mark.parametrize("kind", ["png8", "png16", "png_rgb", "jpeg"])
def test_preprocess_reference_vector_of_each_file_kind(tmp_path: Path, kind: str) -> None:
    image = reference_image()
    data = {
        "png8": lambda: png(image),
        "png16": lambda: png(image.astype(np.uint16) * 257),  # 65535 / 255 = 257
        "png_rgb": lambda: png(np.repeat(image[..., np.newaxis], 3, axis=2)),
        # Each pixel as a flat 8 x 8 block, which JPEG at quality 100 keeps exactly.
        "jpeg": lambda: jpeg(np.kron(image, np.ones((8, 8), np.uint8)), 100),
    }[kind]()
    (tmp_path / "image").write_bytes(data)
    spec = PreprocessSpec(height=2, width=2)
    expected = [[[reference_normal(p, c, spec) for c in range(3)] for p in row] for row in REFERENCE_PIXELS]
    actual = preprocess(tmp_path / "image", spec)
    assert actual.dtype == np.float32
    assert actual.flags.c_contiguous
    # One table entry is computed in float64 and rounded once: at most one float32 step from the exact fraction.
    np.testing.assert_array_max_ulp(actual, np.asarray(expected, np.float32), maxulp=1)


def test_preprocess_reference_vector_control_other_statistics_differ(tmp_path: Path) -> None:
    (tmp_path / "image.png").write_bytes(png(reference_image()))
    right = preprocess(tmp_path / "image.png", PreprocessSpec(height=2, width=2))
    wrong = preprocess(tmp_path / "image.png", PreprocessSpec(height=2, width=2, mean=(0.5,) * 3, std=(0.5,) * 3))
    assert np.abs(right - wrong).max() > 0.1


def test_preprocess_known_numbers_of_chexnet() -> None:
    # Black and white in the red channel: (0 - 0.485) / 0.229 and (1 - 0.485) / 0.229.
    image = np.array([[0, 255]], np.uint8)
    actual = preprocess(image, PreprocessSpec(height=1, width=2))
    assert actual[0, 0, 0] == pytest.approx(-2.1179039, abs=1e-6)
    assert actual[0, 1, 0] == pytest.approx(2.2489083, abs=1e-6)


def test_preprocess_rgb_keeps_channels_apart_and_in_order() -> None:
    image = np.zeros((1, 1, 3), np.uint8)
    image[0, 0] = (255, 0, 51)  # 51 / 255 = 0.2
    spec = PreprocessSpec(height=1, width=1, color="rgb")
    expected = [(1 - 0.485) / 0.229, (0 - 0.456) / 0.224, (0.2 - 0.406) / 0.225]
    np.testing.assert_allclose(preprocess(image, spec)[0, 0], expected, rtol=1e-6)


@given(seed=st.integers(0, 10_000), factor=st.integers(2, 5), deep=st.booleans())
def test_preprocess_integer_factor_equals_numpy_area_mean(seed: int, factor: int, deep: bool) -> None:
    image = np.random.default_rng(seed).integers(0, 256, (16 * factor, 20 * factor), dtype=np.uint8)
    source = image.astype(np.uint16) * 257 if deep else image
    expected, ties = reference_area(image, factor)
    assert_equal_but_ties(resize_uint8(to_uint8(source, GRAY), GRAY), expected, ties)


def test_resize_integer_factor_control_nearest_neighbor_differs() -> None:
    image = draw_image(5, 64, 80)
    expected, _ = reference_area(image, 4)
    assert np.abs(image[::4, ::4].astype(int) - expected).max() > 2


def test_preprocess_does_not_depend_on_the_file_format() -> None:
    image = draw_image(4, 48, 40)
    expected = preprocess(image, GRAY)
    for other in (image.astype(np.uint16) * 257, np.repeat(image[..., np.newaxis], 3, axis=2), image[..., np.newaxis]):
        np.testing.assert_array_equal(preprocess(other, GRAY), expected)


def test_load_uint8_then_normalize_equals_preprocess_bit_for_bit(tmp_path: Path) -> None:
    (tmp_path / "image.png").write_bytes(png(draw_image(6, 61, 47)))
    cached = load_uint8(tmp_path / "image.png", GRAY)
    assert (cached.dtype, cached.shape) == (np.uint8, (16, 20))
    np.testing.assert_array_equal(normalize(cached, GRAY), preprocess(tmp_path / "image.png", GRAY))


# --- 16 to 8 bits -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("bit_depth", range(9, 17))
def test_to_uint8_every_16_bit_value_is_rounded_and_clipped(bit_depth: int) -> None:
    values = np.arange(65536, dtype=np.uint16).reshape(256, 256)
    expected = np.clip(np.rint(values * 255.0 / (2**bit_depth - 1)), 0, 255)
    spec = PreprocessSpec(height=16, width=20, bit_depth=bit_depth)
    np.testing.assert_array_equal(to_uint8(values, spec), expected)


def test_to_uint8_bit_depth_control_another_depth_differs() -> None:
    values = np.full((2, 2), 2048, np.uint16)
    assert to_uint8(values, PreprocessSpec(height=2, width=2, bit_depth=12))[0, 0] == 128  # 2048 * 255 / 4095 = 127.53
    assert to_uint8(values, PreprocessSpec(height=2, width=2))[0, 0] == 8  # 2048 * 255 / 65535 = 7.97


def test_to_uint8_8_bit_image_ignores_bit_depth() -> None:
    image = draw_image(0)
    np.testing.assert_array_equal(to_uint8(image, PreprocessSpec(height=2, width=2, bit_depth=12)), image)


# --- the gray check ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("quality", [30, 60, 95])
def test_gray_check_noisy_image_as_color_jpeg_passes(tmp_path: Path, quality: int) -> None:
    image = draw_image(1, 256, 256)
    noise = np.random.default_rng(0).normal(0, 6, (256, 256, 3))
    noisy = np.clip(image[..., np.newaxis] + noise, 0, 255).astype(np.uint8)
    (tmp_path / "image.jpg").write_bytes(jpeg(noisy, quality))
    # Averaging over 12 x 12 pixels leaves little of the noise; 3 levels also allow for JPEG's own rounding.
    expected = preprocess(image, GRAY)
    assert np.abs(preprocess(tmp_path / "image.jpg", GRAY) - expected).max() < 3 / 255 / 0.224 * 2


def test_gray_check_small_colored_marker_passes() -> None:
    image = np.repeat(draw_image(1, 100, 100)[..., np.newaxis], 3, axis=2)
    image[5:14, 5:16] = (255, 0, 0)  # 99 of 10,000 pixels
    assert colored_share(image) == pytest.approx(0.0099)
    assert to_uint8(image, GRAY).shape == (100, 100)
    image[5:14, 5:17] = (255, 0, 0)  # 108
    with pytest.raises(DataError, match="expected a gray image, got color"):
        to_uint8(image, GRAY)


def _screenshot() -> np.ndarray:
    """An image in a viewer whose title bar is blue: 6 of 100 rows."""
    image = np.repeat(draw_image(2, 100, 100)[..., np.newaxis], 3, axis=2)
    image[:6] = (40, 90, 180)
    return image


def _yellowed() -> np.ndarray:
    """A photograph of an old image: gray turned to sepia."""
    image = draw_image(3, 100, 100).astype(np.float64)
    return np.clip(np.stack([image * 1.1 + 20, image, image * 0.8], axis=-1), 0, 255).astype(np.uint8)


@pytest.mark.parametrize("picture", [color_photo, _screenshot, _yellowed])
@pytest.mark.parametrize("encode", [png, jpeg])
def test_gray_check_color_picture_is_refused_with_numbers(
    tmp_path: Path, picture: Callable[[], np.ndarray], encode: Callable[[np.ndarray], bytes]
) -> None:
    image = picture()
    assert colored_share(image) > COLORED_SHARE_LIMIT
    (tmp_path / "picture").write_bytes(encode(image))
    text = r"picture: expected a gray image, got color: .* of \d+\.\d% of the pixels .* \(limit 1%\).*--gate=off"
    with pytest.raises(DataError, match=text):
        preprocess(tmp_path / "picture", GRAY)


def test_gray_check_off_warns_and_uses_luminance() -> None:
    image = np.zeros((16, 20, 3), np.uint8)
    image[..., 1] = 200  # green: ITU-R BT.601 weighs it 0.587
    with pytest.warns(ImageGateWarning, match="turned to gray because the gate is off"):
        gray = to_uint8(image, GRAY, gate="off")
    np.testing.assert_array_equal(gray, np.full((16, 20), 117))  # round(0.587 * 200)


def test_gray_check_is_not_for_rgb_models() -> None:
    photo = color_photo(16, 20)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        np.testing.assert_array_equal(to_uint8(photo, RGB), photo)


def test_to_uint8_gray_image_for_rgb_model_is_repeated() -> None:
    image = draw_image(0, 16, 20)
    np.testing.assert_array_equal(to_uint8(image, RGB), np.stack([image] * 3, axis=-1))


@pytest.mark.parametrize("gate", ["Off", "warn", ""])
def test_to_uint8_unknown_gate_lists_the_gates(gate: str) -> None:
    with pytest.raises(DataError, match="expected a gate of error, off; got"):
        to_uint8(draw_image(0), GRAY, gate)


# --- arguments --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [np.float32, np.float64, np.int16, np.int64, np.bool_])
def test_to_uint8_other_dtype_is_refused(dtype: type) -> None:
    with pytest.raises(DataError, match=r"expected pixels as uint8 or uint16, got .*; do not normalize beforehand"):
        to_uint8(np.zeros((4, 4), dtype), GRAY)


@pytest.mark.parametrize("shape", [(4,), (4, 4, 2), (4, 4, 4), (1, 4, 4, 3), ()])
def test_to_uint8_other_shape_is_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(DataError, match=r"expected an image of shape \(H, W\) or \(H, W, 3\)"):
        to_uint8(np.zeros(shape, np.uint8), GRAY)


@pytest.mark.parametrize("shape", [(0, 4), (4, 0), (0, 0, 3)])
def test_to_uint8_image_without_pixels_is_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(DataError, match="expected an image with pixels"):
        to_uint8(np.zeros(shape, np.uint8), GRAY)


def test_preprocess_leaves_its_argument_unchanged() -> None:
    for image in (draw_image(0), draw_image(0).astype(np.uint16) * 257, draw_image(0, 16, 20)):
        before = image.copy()
        preprocess(image, GRAY)
        np.testing.assert_array_equal(image, before)


# --- normalize --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("spec", [GRAY, RGB, PreprocessSpec(16, 20, channels=1, mean=(0.5,), std=(0.25,))])
def test_normalize_batch_equals_single_images_bit_for_bit(spec: PreprocessSpec) -> None:
    tail = (16, 20, 3) if spec.color == "rgb" else (16, 20)
    batch = np.random.default_rng(0).integers(0, 256, (7, *tail), dtype=np.uint8)
    together = normalize(batch, spec)
    assert together.shape == (7, 16, 20, spec.channels)
    assert together.dtype == np.float32
    assert together.flags.c_contiguous
    np.testing.assert_array_equal(together, np.stack([normalize(image, spec) for image in batch]))


def test_normalize_every_pixel_value_is_the_rounded_exact_number() -> None:
    spec = PreprocessSpec(height=16, width=16)
    values = np.arange(256, dtype=np.uint8).reshape(16, 16)
    expected = [[reference_normal(pixel, channel, spec) for channel in range(3)] for pixel in range(256)]
    # float64 arithmetic, rounded once to float32: at most one float32 step from the exact fraction.
    np.testing.assert_array_max_ulp(normalize(values, spec).reshape(256, 3), np.asarray(expected, np.float32), maxulp=1)


def test_normalize_non_contiguous_image_gives_contiguous_equal_result() -> None:
    image = draw_image(0, 20, 16).T
    assert not image.flags.c_contiguous
    np.testing.assert_array_equal(normalize(image, GRAY), normalize(np.ascontiguousarray(image), GRAY))
    assert normalize(image, GRAY).flags.c_contiguous


def test_normalize_empty_batch_gives_an_empty_batch() -> None:
    assert normalize(np.zeros((0, 16, 20), np.uint8), GRAY).shape == (0, 16, 20, 3)


@pytest.mark.parametrize(
    "image",
    [np.zeros((16, 20), np.float32), np.zeros((20, 16), np.uint8), np.zeros((2, 2, 16, 20), np.uint8)],
    ids=["float", "transposed", "four_axes"],
)
def test_normalize_wrong_image_is_refused(image: np.ndarray) -> None:
    with pytest.raises(DataError, match=r"normalize: expected uint8 of shape \(16, 20\)"):
        normalize(image, GRAY)


# --- presets and pixels -----------------------------------------------------------------------------------------------

# What the networks' own code does to one RGB pixel of 0 to 255, channel by channel.
PRESET_FORMULAS: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "imagenet_torch": lambda x: (x / 255 - [0.485, 0.456, 0.406]) / [0.229, 0.224, 0.225],
    "unit": lambda x: x / 255,
    "tf": lambda x: x / 127.5 - 1,
    "caffe": lambda x: x[..., ::-1] - [103.939, 116.779, 123.68],
    "xrv": lambda x: (2 * x[..., :1] / 255 - 1) * 1024,
    "raw": lambda x: x,
}


@pytest.mark.parametrize("preset", PRESET_FORMULAS)
@pytest.mark.parametrize("color", ["gray", "rgb"])
def test_normalize_preset_is_the_formula_of_its_networks(preset: str, color: str) -> None:
    if (preset, color) == ("xrv", "rgb"):
        pytest.skip("torchxrayvision's networks take one gray channel")
    spec = PreprocessSpec.preset(preset, 4, 5, color=color)
    pixels = np.random.default_rng(0).integers(0, 256, (4, 5, 3) if color == "rgb" else (4, 5), np.uint8)
    as_rgb = pixels if color == "rgb" else np.repeat(pixels[..., np.newaxis], 3, axis=2)
    expected = PRESET_FORMULAS[preset](as_rgb.astype(np.float64))
    # float64 and one rounding to float32: 2**-24 of numbers up to 1024, or 255 beside which others cancel.
    np.testing.assert_allclose(normalize(pixels, spec), expected, rtol=2**-23, atol=2**-40 * 1024)
    others = [PRESET_FORMULAS[name](as_rgb.astype(np.float64)) for name in PRESET_FORMULAS if name != preset]
    assert all(np.abs(expected - other).max() > 0.1 for other in others)  # control: no two presets are alike


@pytest.mark.parametrize("color", ["gray", "rgb"])
def test_normalize_for_a_model_that_takes_pixels_hands_them_through(color: str) -> None:
    spec = PreprocessSpec(16, 20, color=color, input="uint8")
    batch = np.random.default_rng(0).integers(0, 256, (3, 16, 20, 3) if color == "rgb" else (3, 16, 20), np.uint8)
    fed = normalize(batch, spec)
    assert (fed.dtype, fed.shape) == (np.uint8, (3, *spec.input_shape))
    np.testing.assert_array_equal(fed.reshape(batch.shape), batch)
    np.testing.assert_array_equal(normalize(batch[1], spec), fed[1])
