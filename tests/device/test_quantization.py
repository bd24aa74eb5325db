from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cxr_compress.device.runner import TensorFormat, dequantize, quantize
from cxr_compress.errors import ModelFileError

DTYPES = [np.int8, np.uint8, np.int16]
scales = st.floats(2**-13, 8.0, width=32)


def points(dtype: type) -> st.SearchStrategy[int]:
    # int16 tensors are symmetric in TFLite: their zero point is 0.
    return st.just(0) if dtype is np.int16 else st.integers(np.iinfo(dtype).min, np.iinfo(dtype).max)


def every_code(dtype: type) -> np.ndarray:
    return np.arange(np.iinfo(dtype).min, np.iinfo(dtype).max + 1).astype(dtype)


@pytest.mark.parametrize("dtype", DTYPES)
@given(data=st.data(), scale=scales)
def test_quantize_after_dequantize_is_the_identity_on_codes(dtype: type, data: st.DataObject, scale: float) -> None:
    zero_point = data.draw(points(dtype))
    codes = every_code(dtype)
    again = quantize(dequantize(codes, scale, zero_point), scale, zero_point, dtype)
    assert again.dtype == dtype
    np.testing.assert_array_equal(again, codes)


# No subnormals, here and in the other files: on ARM, tflite-runtime switches the process to flush them to zero.
@pytest.mark.parametrize("dtype", DTYPES)
@given(data=st.data(), scale=scales, share=st.floats(0, 1, allow_subnormal=False))
def test_dequantize_after_quantize_is_within_half_a_step_inside_the_range(
    dtype: type, data: st.DataObject, scale: float, share: float
) -> None:
    zero_point = data.draw(points(dtype))
    low, high = (float(dequantize(np.array(end, dtype), scale, zero_point)) for end in every_code(dtype)[[0, -1]])
    value = np.float32(low + share * (high - low))
    error = abs(float(dequantize(quantize(value, scale, zero_point, dtype), scale, zero_point)) - float(value))
    # Half a step, and float32 rounding (2**-24 relative, a few operations) of numbers as large as the range.
    assert error <= scale / 2 + max(abs(low), abs(high)) * 2**-22


@pytest.mark.parametrize("dtype", DTYPES)
@given(data=st.data(), scale=scales, factor=st.floats(1.01, 1e6))
def test_quantize_outside_the_range_saturates(dtype: type, data: st.DataObject, scale: float, factor: float) -> None:
    zero_point = data.draw(points(dtype))
    limits = np.iinfo(dtype)
    reach = scale * 2.0 * (limits.max - limits.min) * factor
    codes = quantize(np.array([-reach, reach], np.float32), scale, zero_point, dtype)
    np.testing.assert_array_equal(codes, [limits.min, limits.max])


def test_quantize_known_numbers_round_halves_to_even() -> None:
    values = np.array([0.0, 0.25, 0.5, 0.75, -0.25, -0.75, 100.0, -100.0], np.float32)
    # values / 0.5 = 0, 0.5, 1, 1.5, -0.5, -1.5; then the zero point -3.
    np.testing.assert_array_equal(quantize(values, 0.5, -3, np.int8), [-3, -3, -2, -1, -3, -5, 127, -128])


def test_quantize_control_truncation_would_differ() -> None:
    values = np.array([0.4, 0.9], np.float32)
    assert not np.array_equal(quantize(values, 0.5, 0, np.int8), np.trunc(values / 0.5))


def details(dtype: type, scales: list[float], points: list[int]) -> dict[str, Any]:
    parameters = {"scales": np.array(scales, np.float32), "zero_points": np.array(points, np.int32)}
    return {"index": 4, "dtype": dtype, "quantization_parameters": parameters}


@pytest.mark.parametrize(("dtype", "zero_point"), [(np.int8, -14), (np.uint8, 114), (np.int16, 0)])
def test_tensor_format_integer_tensor_encodes_and_decodes(dtype: type, zero_point: int) -> None:
    tensor = TensorFormat.from_details(details(dtype, [0.25], [zero_point]))
    assert (tensor.index, tensor.scale, tensor.zero_point) == (4, 0.25, zero_point)
    values = np.array([[0.0, 1.0, -2.5]], np.float32)
    stored = tensor.encode(values)
    assert stored.dtype == dtype
    np.testing.assert_array_equal(stored, np.array([[0, 4, -10]]) + zero_point)
    np.testing.assert_array_equal(tensor.decode(stored), values)


def test_tensor_format_float_tensor_passes_values_through() -> None:
    tensor = TensorFormat.from_details(details(np.float32, [], []))
    values = np.array([0.1, -7.0], np.float32)
    assert tensor.scale is None
    assert tensor.encode(values) is values
    assert tensor.decode(values) is values


@pytest.mark.parametrize("dtype", [np.int32, np.int64, np.bool_, np.float16])
def test_tensor_format_other_dtype_is_refused(dtype: type) -> None:
    with pytest.raises(ModelFileError, match="expected float32, int8, uint8 or int16 input and output, got"):
        TensorFormat.from_details(details(dtype, [1.0], [0]))


@pytest.mark.parametrize("scales", [[], [0.0], [float("nan")], [0.1, 0.2]])
def test_tensor_format_integer_tensor_without_one_scale_is_refused(scales: list[float]) -> None:
    with pytest.raises(ModelFileError, match="expected one quantization scale above 0 for an int8 tensor"):
        TensorFormat.from_details(details(np.int8, scales, [0] * len(scales)))


@pytest.mark.parametrize("scales", [[], [1.0]])
def test_tensor_format_of_pixels_hands_uint8_through(scales: list[float]) -> None:
    tensor = TensorFormat.from_details(details(np.uint8, scales, [0] * len(scales)))
    assert (tensor.scale, tensor.zero_point, tensor.takes_pixels) == (1.0, 0, True)
    pixels = every_code(np.uint8)
    assert tensor.encode(pixels) is pixels
    np.testing.assert_array_equal(tensor.encode(pixels.astype(np.float32)), pixels)
    assert tensor.encode(pixels.astype(np.float32)).dtype == np.uint8


def test_tensor_format_of_quantized_floats_takes_no_pixels() -> None:
    assert not TensorFormat.from_details(details(np.uint8, [0.5], [0])).takes_pixels
    assert not TensorFormat.from_details(details(np.int8, [1.0], [0])).takes_pixels
