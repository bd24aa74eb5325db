from __future__ import annotations

import csv
from pathlib import Path

import cv2
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cxr_compress.device.image_checks import INVERTED_BELOW, INVERTED_TEXT, image_warnings, in_short, inversion_score
from tests.device.images import draw_chest


@pytest.mark.parametrize("shift", [-0.1, 0.0, 0.1])
@pytest.mark.parametrize("size", [(64, 64), (224, 224), (300, 200)])
def test_image_warnings_of_a_negative_only(size: tuple[int, int], shift: float) -> None:
    image = draw_chest(*size, shift=shift)
    assert image_warnings(image) == ()
    (text,) = image_warnings(255 - image)
    assert text.startswith("looks inverted")


@given(gain=st.floats(0.2, 1.0), offset=st.integers(0, 50))
def test_inversion_score_follows_neither_brightness_nor_contrast(gain: float, offset: int) -> None:
    image = draw_chest()
    other = np.floor(image * gain + offset).clip(0, 255).astype(np.uint8)
    # Rounding down to whole levels: half a level beside a spread of at least 0.2 * 50.
    assert inversion_score(other) == pytest.approx(inversion_score(image), abs=0.1)


def test_inversion_score_of_a_negative_is_the_opposite() -> None:
    image = draw_chest(64, 64)  # the size it is measured at, so that nothing is rounded
    assert inversion_score(255 - image) == pytest.approx(-inversion_score(image), abs=1e-9)


def checker(levels: tuple[int, ...], size: int = 96) -> np.ndarray:
    """Broad stripes of a few levels."""
    rows = np.asarray(levels, np.uint8)[np.arange(size) * len(levels) // size]
    return np.repeat(rows[:, np.newaxis], size, axis=1)


def noise(size: int, grain: int = 1, seed: int = 0) -> np.ndarray:
    grains = np.random.default_rng(seed).integers(0, 256, (size // grain, size // grain), dtype=np.uint8)
    return np.kron(grains, np.ones((grain, grain), np.uint8))


ODD = {
    "is blank (every pixel has the level 0 of 0 to 255)": lambda: np.zeros((90, 80), np.uint8),
    "is blank (every pixel has the level 137 of 0 to 255)": lambda: np.full((90, 80), 137, np.uint8),
    "is blank (every pixel has the level 9, 8, 7 of": lambda: np.full((90, 80, 3), (9, 8, 7), np.uint8),
    "is nearly black (95% of the pixels have level 8 of": lambda: draw_chest() // 20,
    "is nearly white (95% of the pixels have level 24": lambda: 240 + draw_chest() // 20,
    "has few gray levels (2 of 256 hold 95% of": lambda: checker((30, 150)),
    "has few gray levels (": lambda: draw_chest() // 32 * 32,
    "looks like noise (neighboring pixels correlate": lambda: noise(224),
    "looks like noise (neighboring": lambda: noise(512, 16),
    "is small (20 x 24 pixels, expected 32 and more": lambda: draw_chest(20, 24),
}


@pytest.mark.parametrize("start", ODD)
@pytest.mark.parametrize("color", [False, True], ids=["gray", "rgb"])
def test_image_warnings_name_what_is_odd_with_a_number(start: str, color: bool) -> None:
    image = ODD[start]()
    if color and image.ndim == 2:
        image = np.repeat(image[..., np.newaxis], 3, axis=2)
        start = start.replace("level 0 of 0", "level 0, 0, 0 of 0").replace("level 137", "level 137, 137, 137")
    said = image_warnings(image)
    (text,) = [text for text in said if text.startswith(start)]
    assert "; " in text
    assert in_short(text) in (
        "is blank",
        "is nearly black",
        "is nearly white",
        "has few gray levels",
        "looks like noise",
        "is small",
    )


@pytest.mark.parametrize("size", [(64, 64), (224, 224), (1024, 800), (33, 32)])
def test_image_warnings_of_a_sound_image_are_none(size: tuple[int, int]) -> None:
    assert image_warnings(draw_chest(*size)) == ()


def test_image_warnings_of_small_images_follow_the_model() -> None:
    image = draw_chest(28, 28)
    assert image_warnings(image, least_side=28) == ()
    assert in_short(image_warnings(image, least_side=224)[0]) == "is small"


@given(pixels=st.binary(min_size=1, max_size=300), width=st.integers(1, 20))
def test_image_warnings_of_any_pixels_are_sentences(pixels: bytes, width: int) -> None:
    values = np.frombuffer(pixels, np.uint8)
    image = values[: max(1, len(values) // width) * width][: width * (len(values) // width) or len(values)]
    for text in image_warnings(image.reshape(-1, width) if image.size % width == 0 else image.reshape(1, -1)):
        assert text.split()[0] in ("is", "has", "looks")
        assert "\n" not in text
        assert len(in_short(text)) < 25


@pytest.mark.parametrize(
    ("text", "short"),
    [
        (INVERTED_TEXT, "looks inverted"),
        (
            "uses 12 of 16 bits (its highest value is 9) and was read so; --bit_depth=16",
            "uses 12 of 16 bits",
        ),
        ("expected a gray image, got color: the channels", "expected a gray image, got color"),
    ],
)
def test_in_short_is_what_was_seen(text: str, short: str) -> None:
    assert in_short(text) == short


def listed_as_inverted(cxr_data: Path) -> set[str]:
    with (cxr_data / "nih_meta" / "cxr14_bad_labels.csv").open() as file:
        return {row["Index"].removesuffix(".png") for row in csv.DictReader(file) if float(row["Inverted"]) == 1.0}


@pytest.mark.parametrize(
    ("folder", "least_images", "false_alarms", "hits"),
    [("kermany224/images/test", 624, 0.002, 0.998), ("nih_mini/images", 1700, 0.004, 0.985)],
)
def test_image_warnings_on_real_images_are_rare_and_right(
    cxr_data: Path, folder: str, least_images: int, false_alarms: float, hits: float
) -> None:
    inverted = listed_as_inverted(cxr_data)
    paths = sorted(path for path in (cxr_data / folder).rglob("*") if path.suffix in (".jpg", ".jpeg", ".png"))
    images = [cv2.imread(str(path), cv2.IMREAD_GRAYSCALE) for path in paths if path.stem not in inverted]
    assert len(images) >= least_images
    others = [text for image in images for text in image_warnings(image) if text != INVERTED_TEXT]
    assert others == []
    below = np.array([inversion_score(image) for image in images]) < INVERTED_BELOW
    found = np.array([inversion_score(255 - image) for image in images]) < INVERTED_BELOW
    assert below.mean() <= false_alarms
    assert found.mean() >= hits


def test_image_warnings_on_images_listed_as_inverted(cxr_data: Path) -> None:
    inverted = listed_as_inverted(cxr_data)
    paths = [path for path in (cxr_data / "nih_mini" / "images").iterdir() if path.stem in inverted]
    assert len(paths) == 2
    for path in paths:
        assert image_warnings(cv2.imread(str(path), cv2.IMREAD_GRAYSCALE)) != ()
