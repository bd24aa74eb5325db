"""Copies are found, whatever they were saved as; images that only look alike are not."""

from __future__ import annotations

from itertools import combinations
from pathlib import Path

import cv2
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cxr_compress.data.checks import (
    MAX_DISTANCE,
    _bit_counts,
    _candidates,
    equal_groups,
    perceptual_hash,
    similar_groups,
)


def shrink(image: np.ndarray) -> np.ndarray:
    return cv2.resize(image, (32, 32), interpolation=cv2.INTER_AREA)


def make_pictures(count: int, seed: int = 0) -> np.ndarray:
    """Smooth random images: enough alike in kind, never the same."""
    noise = np.random.default_rng(seed).integers(0, 256, (count, 8, 8)).astype(np.uint8)
    return np.stack([cv2.resize(one, (32, 32), interpolation=cv2.INTER_CUBIC) for one in noise])


def save_anew(image: np.ndarray, how: str) -> np.ndarray:
    """A copy as sets have them."""
    half = cv2.resize(image, None, fx=0.5, fy=0.5, interpolation=cv2.INTER_AREA)
    return {
        "jpeg of half the size": cv2.imdecode(cv2.imencode(".jpg", half, [cv2.IMWRITE_JPEG_QUALITY, 40])[1], 0),
        "less contrast": np.clip(image * 0.7 + 30, 0, 255).astype(np.uint8),
        "16 bits and back": (image.astype(np.uint16) * 257 // 256).astype(np.uint8),
        "brighter": np.clip(image.astype(int) + 12, 0, 255).astype(np.uint8),
    }[how]


@pytest.mark.parametrize("how", ["jpeg of half the size", "less contrast", "16 bits and back", "brighter"])
def test_similar_groups_real_images_saved_anew_are_found_and_no_others(cxr_data: Path, how: str) -> None:
    folder = cxr_data / "kermany224" / "images" / "test" / "PNEUMONIA"
    images = [cv2.imread(str(path), cv2.IMREAD_GRAYSCALE) for path in sorted(folder.iterdir())[:40]]
    thumbnails = np.stack(
        [shrink(image) for image in images] + [shrink(save_anew(image, how)) for image in images[:15]]
    )
    assert sorted(similar_groups(thumbnails)) == [(image, 40 + image) for image in range(15)]


def test_similar_groups_chains_and_many_copies_are_one_group() -> None:
    pictures = make_pictures(30)
    rng = np.random.default_rng(1)
    copies = [np.clip(pictures[3].astype(int) + rng.integers(-3, 4, (32, 32)), 0, 255) for _ in range(25)]
    thumbnails = np.concatenate([pictures, np.array(copies, np.uint8), pictures[7:8]])
    assert similar_groups(thumbnails) == [(3, *range(30, 55)), (7, 55)]


def test_similar_groups_flat_images_and_mirrored_images_are_none() -> None:
    flat = np.stack([np.full((32, 32), level, np.uint8) for level in (0, 0, 128, 255)])
    pictures = make_pictures(5)
    assert similar_groups(np.concatenate([flat, pictures, pictures[:, :, ::-1]])) == []
    assert similar_groups(np.empty((0, 32, 32), np.uint8)) == []


def test_similar_groups_same_hash_of_different_pictures_is_told_apart_by_the_thumbnails() -> None:
    """Only low frequencies enter the hash; a fine pattern changes the image but not one bit."""
    picture = (make_pictures(1)[0] // 4 + 96).astype(np.uint8)
    wave = np.cos((2 * np.arange(32) + 1) * 20 * np.pi / 64)  # the 20th frequency of the DCT, on both axes
    patterned = np.rint(picture + 60 * np.outer(wave, wave)).astype(np.uint8)
    assert perceptual_hash(picture) == perceptual_hash(patterned)
    assert similar_groups(np.stack([picture, patterned])) == []
    assert similar_groups(np.stack([picture, patterned, picture, patterned])) == [(0, 2), (1, 3)]


def test_candidates_are_exactly_the_pairs_within_the_distance() -> None:
    rng = np.random.default_rng(0)
    hashes = [int(word) for word in rng.integers(0, 2**63, 60)]
    for number in range(60):  # neighbors 0 to 8 bits away, in random places
        flips = rng.choice(64, number % 9, replace=False)
        hashes.append(hashes[number] ^ sum(1 << int(bit) for bit in flips))
    words = np.array(hashes, np.uint64)
    found = {
        tuple(sorted(pair))
        for one, other in _candidates(words, np.arange(len(words)))
        for pair in zip(one.tolist(), other.tolist(), strict=True)
    }
    close = {
        pair
        for pair in combinations(range(120), 2)
        if bin(hashes[pair[0]] ^ hashes[pair[1]]).count("1") <= MAX_DISTANCE
    }
    assert found == close
    assert len(close) >= 60 * 6 // 9


@given(st.lists(st.integers(0, 2**64 - 1), min_size=1, max_size=20))
def test_bit_counts_agree_with_pythons(words: list[int]) -> None:
    assert _bit_counts(np.array(words, np.uint64)).tolist() == [bin(word).count("1") for word in words]


def test_equal_groups_keep_order_and_pass_over_what_was_not_read() -> None:
    assert equal_groups([b"a", b"", b"b", b"a", b"", b"c", b"b", b"a"]) == [(0, 3, 7), (2, 6)]
