from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cxr_compress.errors import DataError
from cxr_compress.lite.calibration import MIN_IMAGES, collect_images, pick_evenly
from tests.lite import nets

SHAPE = (8, 8, 3)


def test_collect_images_takes_batches_of_any_size_in_order() -> None:
    images = nets.batch(20, 8)
    got = collect_images((images[i : i + 7] for i in range(0, 20, 7)), SHAPE, 18)
    assert got.dtype == np.float32
    assert np.array_equal(got, images[:18])


def test_collect_images_reads_no_further_than_it_needs() -> None:
    asked = []

    def batches() -> Any:
        for number in range(100):
            asked.append(number)
            yield nets.batch(1, 8, seed=number)

    collect_images(batches(), SHAPE, 16)
    assert asked == list(range(16))


def test_collect_images_with_too_few_says_both_numbers() -> None:
    assert len(collect_images([nets.batch(MIN_IMAGES, 8)], SHAPE)) == MIN_IMAGES
    with pytest.raises(DataError, match="at least 16 calibration images, got 15"):
        collect_images([nets.batch(MIN_IMAGES - 1, 8)], SHAPE)
    with pytest.raises(DataError, match="at least 16 calibration images, got 0"):
        collect_images([], SHAPE)
    with pytest.raises(DataError, match="at least 16 calibration steps, got 4"):
        collect_images([nets.batch(32, 8)], SHAPE, 4)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda x: x.astype(np.float64), r"float32 \(n, 8, 8, 3\), got float64 \(16, 8, 8, 3\)"),
        (lambda x: (x * 255).astype(np.uint8), "got uint8"),
        (lambda x: x[0], r"got float32 \(8, 8, 3\)"),
        (lambda x: x[..., :1], r"got float32 \(16, 8, 8, 1\)"),
        (lambda x: (x, np.zeros(16)), "got a tuple: yield the images alone, without labels"),
    ],
)
def test_collect_images_of_another_kind_fails(change: Any, message: str) -> None:
    with pytest.raises(DataError, match=message):
        collect_images([change(nets.batch(16, 8))], SHAPE)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_collect_images_with_a_value_that_is_not_finite_names_the_image(value: float) -> None:
    images = nets.batch(20, 8)
    images[17, 3, 3, 1] = value
    with pytest.raises(DataError, match="calibration image 17 holds NaN or infinite values"):
        collect_images([images[:10], images[10:]], SHAPE, 20)


def test_collect_images_with_a_blank_image_names_it() -> None:
    images = nets.batch(20, 8)
    images[12] = [-2.1, -2.0, -1.8]  # black, normalized per channel
    with pytest.raises(DataError, match="calibration image 12 is blank"):
        collect_images([images], SHAPE, 20)
    images[12, 0, 0, 0] = 0.0  # control: one other pixel, and it is an image
    assert len(collect_images([images], SHAPE, 20)) == 20


@given(length=st.integers(1, 400), count=st.integers(1, 200))
def test_pick_evenly_gives_distinct_items_in_order_from_the_whole_length(length: int, count: int) -> None:
    picked = pick_evenly(range(length), count)
    assert len(picked) == min(length, count)
    assert picked == sorted(set(picked))
    gaps = np.diff([*picked, length])
    assert gaps.max() - gaps.min() <= 1  # nowhere denser than elsewhere
