from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from cxr_compress.device.grayscale import WINDOW_FUNCTIONS, GrayScale, Lut, Window, gray_table, window_levels
from cxr_compress.errors import DataError

centers = st.floats(-5000, 5000, allow_subnormal=False)
widths = st.floats(1, 9000, allow_subnormal=False)


def levels(values: list[float], *window: Any) -> list[float]:
    return [float(level) for level in window_levels(np.asarray(values, np.float64), Window(*window))]


def test_window_linear_known_numbers_of_the_standard() -> None:
    # PS3.3 C.11.2.1.2.1, its own example: center 2048, width 4096 makes 0 to 4095 the full range.
    assert levels([-1, 0, 4095, 4096], 2048, 4096) == [0, 0, 255, 255]
    # And: width 1 is a threshold; x <= 2048 - 0.5 is dark.
    assert levels([2047, 2048], 2048, 1) == [0, 255]


def test_window_linear_exact_and_sigmoid_known_numbers() -> None:
    assert levels([0, 50, 100], 50, 100, "LINEAR_EXACT") == [0, 127.5, 255]
    assert levels([50], 50, 100, "SIGMOID") == [127.5]
    # 255 / (1 + exp(-4 * 25 / 100)) = 255 / (1 + 1 / e)
    assert levels([75], 50, 100, "SIGMOID") == pytest.approx([186.41994], abs=1e-5)


@given(center=centers, width=widths, function=st.sampled_from(WINDOW_FUNCTIONS), signed=st.booleans())
def test_window_equals_pydicoms_formula(center: float, width: float, function: str, signed: bool) -> None:
    pydicom = pytest.importorskip("pydicom")
    from pydicom.pixels.processing import apply_voi_lut

    assume(function != "LINEAR" or width == 1 or width > 1.01)  # what divides by width - 1 drowns in rounding
    dataset = pydicom.Dataset()
    # As numbers and not as the 16 characters of a DICOM string, which would round them.
    dataset.WindowCenter = pydicom.valuerep.DSfloat(center, validation_mode=0)
    dataset.WindowWidth = pydicom.valuerep.DSfloat(width, validation_mode=0)
    dataset.VOILUTFunction, dataset.PhotometricInterpretation = function, "MONOCHROME2"
    dataset.BitsStored, dataset.PixelRepresentation = 12, int(signed)
    values = np.arange(-2048, 2048) if signed else np.arange(4096)
    low, high = (-2048, 2047) if signed else (0, 4095)
    with np.errstate(over="ignore"):  # theirs, far outside of a SIGMOID
        theirs = (apply_voi_lut(values.astype(np.int16), dataset) - low) / (high - low) * 255
    ours = window_levels(values.astype(np.float64), Window(center, width, function))
    # Both in float64: (x - c) / w loses at most the rounding of x - c, 2**-53 * 7000, divided by w >= 0.01.
    np.testing.assert_allclose(ours, theirs, atol=1e-6)


@given(center=centers, width=widths, bits=st.integers(1, 16))
def test_gray_table_of_a_window_never_falls(center: float, width: float, bits: int) -> None:
    for function in WINDOW_FUNCTIONS:
        table = gray_table(GrayScale(bits), Window(center, width, function))
        assert (table.dtype, table.shape) == (np.uint8, (2**bits,))
        assert (np.diff(table.astype(int)) >= 0).all()


@given(
    low=st.integers(0, 4000), span=st.integers(2, 4000), function=st.sampled_from(WINDOW_FUNCTIONS), none=st.booleans()
)
def test_gray_table_of_a_negative_is_the_same_picture(low: int, span: int, function: str, none: bool) -> None:
    top = 4095
    window = None if none else Window(low + span / 2, span, function)
    # x -> top - x moves the center there too; LINEAR looks half a value to its left, so it moves by one more.
    turned = None if none else Window(top - low - span / 2 + (function == "LINEAR"), span, function)
    positive = gray_table(GrayScale(12), window)
    negative = gray_table(GrayScale(12, inverted=True), turned)
    np.testing.assert_array_equal(negative[::-1], positive)
    control = gray_table(GrayScale(12), turned)
    assert (control[::-1] != positive).any()  # control: not inverted, it is another picture


def test_gray_table_without_window_is_the_rounded_full_range() -> None:
    for bits in (8, 10, 12, 15, 16):
        expected = np.rint(np.arange(2**bits) * 255.0 / (2**bits - 1))
        np.testing.assert_array_equal(gray_table(GrayScale(bits), None), expected)


def test_gray_table_without_window_of_8_bits_changes_nothing() -> None:
    np.testing.assert_array_equal(gray_table(GrayScale(8), None), np.arange(256))


def test_gray_table_signed_starts_at_the_smallest_value() -> None:
    table = gray_table(GrayScale(8, signed=True), Window(0, 2, "LINEAR_EXACT"))
    assert table[127] == 0  # -1
    assert table[128] == 128  # 0: 127.5, halves upwards
    assert table[129] == 255  # 1


def test_gray_table_rescale_comes_before_the_window() -> None:
    table = gray_table(GrayScale(8, slope=2.0, intercept=-100.0), Window(100, 100, "LINEAR_EXACT"))
    assert list(table[[75, 100, 125]]) == [0, 128, 255]  # 2 * 75 - 100 = 50, the lower end


def test_gray_table_negative_slope_turns_the_picture() -> None:
    np.testing.assert_array_equal(gray_table(GrayScale(8, slope=-1.0), None), np.arange(255, -1, -1))


def test_gray_table_voi_lut_clips_outside_and_scales_by_its_bits() -> None:
    table = gray_table(GrayScale(8), Lut(10, 10, np.array([0, 1023, 341])))
    assert list(table[[0, 10, 11, 12, 13, 255]]) == [0, 0, 255, 85, 85, 85]


def test_gray_table_modality_lut_replaces_the_rescale() -> None:
    scale = GrayScale(8, slope=5.0, modality=Lut(0, 8, np.arange(255, -1, -1)))
    np.testing.assert_array_equal(gray_table(scale, None), np.arange(255, -1, -1))


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        ((0.0, 0.5), "a LINEAR width is at least 1 and above 0"),
        ((0.0, 0.0, "LINEAR_EXACT"), "a LINEAR_EXACT width is at least 0 and above 0"),
        ((0.0, -3.0, "SIGMOID"), "choose one with --window=CENTER,WIDTH"),
        ((float("nan"), 3.0), "that no image can be seen through"),
        ((0.0, float("inf")), "that no image can be seen through"),
        ((0.0, 3.0, "SECRET"), "LINEAR, LINEAR_EXACT, SIGMOID; the file names another one"),
    ],
)
def test_window_unusable_is_refused_without_repeating_the_file(arguments: tuple[Any, ...], text: str) -> None:
    with pytest.raises(DataError, match=text) as caught:
        Window(*arguments)
    assert "SECRET" not in str(caught.value)
