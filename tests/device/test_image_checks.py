from __future__ import annotations

import csv
from pathlib import Path

import cv2
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cxr_compress.device.image_checks import INVERTED_BELOW, image_warnings, inversion_score
from tests.device.films import draw_chest


@pytest.mark.parametrize("shift", [-0.1, 0.0, 0.1])
@pytest.mark.parametrize("size", [(64, 64), (224, 224), (300, 200)])
def test_image_warnings_of_a_negative_only(size: tuple[int, int], shift: float) -> None:
    film = draw_chest(*size, shift=shift)
    assert image_warnings(film) == ()
    (text,) = image_warnings(255 - film)
    assert text.startswith("looks inverted")


@given(gain=st.floats(0.2, 1.0), offset=st.integers(0, 50))
def test_inversion_score_follows_neither_brightness_nor_contrast(gain: float, offset: int) -> None:
    film = draw_chest()
    other = np.floor(film * gain + offset).clip(0, 255).astype(np.uint8)
    # Rounding down to whole levels: half a level beside a spread of at least 0.2 * 50.
    assert inversion_score(other) == pytest.approx(inversion_score(film), abs=0.1)


def test_inversion_score_of_a_negative_is_the_opposite() -> None:
    film = draw_chest(64, 64)  # the size it is measured at, so that nothing is rounded
    assert inversion_score(255 - film) == pytest.approx(-inversion_score(film), abs=1e-9)


def listed_as_inverted(cxr_data: Path) -> set[str]:
    with (cxr_data / "nih_meta" / "cxr14_bad_labels.csv").open() as file:
        return {row["Index"].removesuffix(".png") for row in csv.DictReader(file) if float(row["Inverted"]) == 1.0}


@pytest.mark.parametrize(
    ("folder", "least_films", "false_alarms", "hits"),
    [("kermany224/images/test", 624, 0.002, 0.998), ("nih_mini/images", 1700, 0.004, 0.985)],
)
def test_image_warnings_on_real_films_are_rare_and_right(
    cxr_data: Path, folder: str, least_films: int, false_alarms: float, hits: float
) -> None:
    inverted = listed_as_inverted(cxr_data)
    paths = sorted(path for path in (cxr_data / folder).rglob("*") if path.suffix in (".jpg", ".jpeg", ".png"))
    films = [cv2.imread(str(path), cv2.IMREAD_GRAYSCALE) for path in paths if path.stem not in inverted]
    assert len(films) >= least_films
    below = np.array([inversion_score(film) for film in films]) < INVERTED_BELOW
    found = np.array([inversion_score(255 - film) for film in films]) < INVERTED_BELOW
    assert below.mean() <= false_alarms
    assert found.mean() >= hits


def test_image_warnings_on_films_listed_as_inverted(cxr_data: Path) -> None:
    inverted = listed_as_inverted(cxr_data)
    paths = [path for path in (cxr_data / "nih_mini" / "images").iterdir() if path.stem in inverted]
    assert len(paths) == 2
    for path in paths:
        assert image_warnings(cv2.imread(str(path), cv2.IMREAD_GRAYSCALE)) != ()
