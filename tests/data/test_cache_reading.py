"""One cache file, opened without its data set."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest

from cxr_compress.data.cache import build_cache, open_cache_file
from cxr_compress.data.splits import Split
from cxr_compress.device.preprocess import PreprocessSpec, load_uint8
from cxr_compress.errors import DataError

SPEC = PreprocessSpec(16, 16)


def split_of(folder: Path, name: str = "train", count: int = 4) -> Split:
    paths = []
    for number in range(count):
        path = folder / f"image_{number}.png"
        image = np.random.default_rng(number).integers(0, 255, (24, 24), np.uint8)
        assert cv2.imwrite(str(path), image)
        paths.append(path)
    labels = np.zeros((count, 1), np.float32)
    return Split(name, tuple(paths), labels, tuple(map(str, range(count))))


def test_open_cache_file_gives_the_images(tmp_path: Path) -> None:
    split = split_of(tmp_path)
    entry = build_cache(split, SPEC, tmp_path / "cache")
    images = open_cache_file(entry.path, SPEC)
    np.testing.assert_array_equal(images, [load_uint8(path, SPEC) for path in split.paths])
    assert not images.flags.writeable


def test_open_cache_file_of_another_size_or_color_says_what_it_holds(tmp_path: Path) -> None:
    entry = build_cache(split_of(tmp_path), SPEC, tmp_path / "cache")
    for spec in (PreprocessSpec(20, 20), PreprocessSpec(16, 16, color="rgb")):
        with pytest.raises(DataError, match=r"for this model, train_16x16_gray_\w+\.npy holds 16 x 16 \(gray\)"):
            open_cache_file(entry.path, spec)
    # How images are normalized afterwards does not part caches.
    assert len(open_cache_file(entry.path, PreprocessSpec.preset("tf", 16, 16))) == 4


def test_open_cache_file_of_the_test_part_is_refused(tmp_path: Path) -> None:
    entry = build_cache(split_of(tmp_path, "test"), SPEC, tmp_path / "cache")
    with pytest.raises(DataError, match="cache of the test part, which is for scoring alone: give that of train"):
        open_cache_file(entry.path, SPEC)


def test_open_cache_file_without_manifest_is_refused(tmp_path: Path) -> None:
    np.save(tmp_path / "images.npy", np.zeros((4, 16, 16), np.uint8))
    with pytest.raises(DataError, match=r"images\.npy has no manifest of cxr_data cache beside it \(images\.json\)"):
        open_cache_file(tmp_path / "images.npy", SPEC)
    with pytest.raises(DataError, match="has no manifest"):
        open_cache_file(tmp_path / "missing.npy", SPEC)


def test_open_cache_file_that_is_damaged_is_refused(tmp_path: Path) -> None:
    entry = build_cache(split_of(tmp_path), SPEC, tmp_path / "cache")
    whole = entry.path.read_bytes()
    entry.path.write_bytes(whole[:-100])
    with pytest.raises(DataError, match="cannot be read as a cache"):
        open_cache_file(entry.path, SPEC)
    np.save(entry.path, np.zeros((3, 16, 16), np.uint8))
    with pytest.raises(DataError, match="does not hold what its manifest says"):
        open_cache_file(entry.path, SPEC)


def test_open_cache_file_of_another_version_is_refused(tmp_path: Path) -> None:
    entry = build_cache(split_of(tmp_path), SPEC, tmp_path / "cache")
    manifest = entry.path.with_suffix(".json")
    manifest.write_text(manifest.read_text().replace('"preprocess_version": 2', '"preprocess_version": 1'))
    with pytest.raises(DataError, match="made by another version of cxr_data"):
        open_cache_file(entry.path, SPEC)
