"""Brightness and spread of images."""

from __future__ import annotations

import numpy as np
import pytest

from cxr_compress.device.image_checks import ImageStatistics
from cxr_compress.errors import DataError


@pytest.mark.parametrize("shape", [(5, 8, 9), (5, 8, 9, 3)])
def test_image_statistics_are_those_of_numpy(shape: tuple[int, ...]) -> None:
    images = np.random.default_rng(0).integers(0, 256, shape, np.uint8)
    values = images.astype(np.float64).reshape(-1, shape[3] if len(shape) == 4 else 1) / 255
    found = ImageStatistics.of(images)
    np.testing.assert_allclose(found.mean, values.mean(axis=0), atol=1e-6)  # rounded to six digits
    np.testing.assert_allclose(found.std, values.std(axis=0), atol=1e-6)
    assert ImageStatistics.from_dict(found.to_dict()) == found


def test_image_statistics_of_many_images_are_taken_evenly() -> None:
    images = np.repeat(np.arange(4096, dtype=np.uint16) // 16, 4).astype(np.uint8).reshape(4096, 2, 2)
    found = ImageStatistics.of(images)
    assert found.mean[0] == pytest.approx(0.5, abs=0.001)  # brightness grows along the set
    assert found == ImageStatistics.of(images[::4])


@pytest.mark.parametrize("images", [np.zeros((0, 2, 2), np.uint8), np.zeros((2, 2), np.uint8), np.zeros((2, 2, 2))])
def test_image_statistics_of_something_else_say_so(images: np.ndarray) -> None:
    with pytest.raises(DataError, match=r"expected uint8 images \(n, height, width"):
        ImageStatistics.of(images)


@pytest.mark.parametrize("fields", [None, {}, {"mean": [0.5]}, {"mean": ["a"], "std": [0.1]}])
def test_image_statistics_from_something_else_say_so(fields: object) -> None:
    with pytest.raises(DataError, match="expected mean and std of images, got"):
        ImageStatistics.from_dict(fields)


@pytest.mark.parametrize(("mean", "std"), [((2.0,), (0.1,)), ((0.5, 0.5), (0.1, 0.1)), ((0.5,), (0.1, 0.1))])
def test_image_statistics_out_of_range_are_refused(mean: tuple[float, ...], std: tuple[float, ...]) -> None:
    with pytest.raises(DataError, match="expected mean and std of 1 or 3 channels"):
        ImageStatistics(mean, std)
