"""A cache holds what decoding gives, and never passes for something it is not."""

from __future__ import annotations

import os
import shutil
import zlib
from pathlib import Path

import numpy as np
import pytest

from cxr_compress.data import cache_file
from cxr_compress.data.cache import build_cache, decode_split, open_cache, verify_cache
from cxr_compress.data.cache_file import PREPROCESS_VERSION, plan_cache
from cxr_compress.data.splits import Split
from cxr_compress.device.preprocess import PreprocessSpec, prepare, resize_uint8, to_uint8
from cxr_compress.errors import CompressionError, DataError
from tests.data.cache_images import IMAGE, SPEC, images_of, names_in, split_of
from tests.device.images import exif, png, with_exif


@pytest.fixture
def small_chunks(monkeypatch) -> None:
    monkeypatch.setattr(cache_file, "CHUNK_IMAGES", 8)


@pytest.mark.parametrize("color", ["gray", "rgb"])
def test_decode_split_with_a_cache_equals_decoding_and_is_a_read_only_map(tmp_path, color, small_chunks) -> None:
    split, spec = images_of(tmp_path / "images"), PreprocessSpec(20, 16, color=color)
    plain = decode_split(split, spec)
    for _ in range(2):
        cached = decode_split(split, spec, cache_dir=tmp_path / "cache")
        assert isinstance(cached, np.memmap)
        assert not cached.flags.writeable
        np.testing.assert_array_equal(cached, plain)
    chosen = np.array([29, 3, 3, 17])
    np.testing.assert_array_equal(cached[chosen], plain[chosen])
    assert names_in(tmp_path / "cache") == [".json", ".npy"]


def test_build_cache_again_decodes_nothing_and_gives_the_same_file(tmp_path, small_chunks) -> None:
    split = images_of(tmp_path / "images")
    seen: list[tuple[int, int]] = []
    first = build_cache(split, SPEC, tmp_path / "cache", progress=lambda *counts: seen.append(counts))
    assert seen == sorted(seen)
    assert seen[-1] == (30, 30)
    before = first.path.stat().st_mtime_ns
    again = build_cache(split, SPEC, tmp_path / "cache")
    assert (first.decoded, again.decoded) == (30, 0)
    assert first.sha256 == again.sha256 == cache_file.file_sha256(first.path)
    assert first.bytes == first.path.stat().st_size
    assert again.path.stat().st_mtime_ns == before


def test_cache_file_is_a_plain_npy_with_one_row_per_image(tmp_path) -> None:
    split = images_of(tmp_path / "images")
    entry = build_cache(split, SPEC, tmp_path / "cache")
    np.testing.assert_array_equal(np.load(entry.path), decode_split(split, SPEC))
    assert entry.bytes == 128 + 30 * IMAGE  # a .npy header of this length is padded to 128 bytes


def test_build_cache_leaves_no_name_and_no_patient_in_the_folder(tmp_path) -> None:
    split = images_of(tmp_path / "images")
    build_cache(split, SPEC, tmp_path / "cache")
    for path in (tmp_path / "cache").iterdir():
        assert "secret_patient" not in path.name
        assert b"secret_patient" not in path.read_bytes()


def test_specs_that_decode_alike_share_a_cache_and_others_do_not(tmp_path) -> None:
    split = images_of(tmp_path / "images")

    def decoded(spec: PreprocessSpec) -> int:
        return build_cache(split, spec, tmp_path / "cache").decoded

    assert decoded(SPEC) == 30
    assert decoded(PreprocessSpec(16, 16, channels=1, mean=(0.5,), std=(0.5,))) == 0
    for other in (PreprocessSpec(16, 17), PreprocessSpec(16, 16, bit_depth=12), PreprocessSpec(16, 16, color="rgb")):
        assert decoded(other) == 30
    assert decoded(SPEC) == 0


def test_cache_of_other_images_in_another_order_is_another_cache(tmp_path) -> None:
    split = images_of(tmp_path / "images")
    build_cache(split, SPEC, tmp_path / "cache")
    turned = split.take(np.arange(30)[::-1])
    with pytest.raises(DataError, match=r"expected a complete cache of train at 16x16 \(gray\) in .*build it first"):
        open_cache(turned, SPEC, tmp_path / "cache")
    assert build_cache(turned, SPEC, tmp_path / "cache").decoded == 30
    np.testing.assert_array_equal(
        open_cache(turned, SPEC, tmp_path / "cache"), open_cache(split, SPEC, tmp_path / "cache")[::-1]
    )


def test_cache_of_a_moved_set_with_new_times_is_kept_because_contents_agree(tmp_path) -> None:
    split = images_of(tmp_path / "images")
    entry = build_cache(split, SPEC, tmp_path / "cache")
    shutil.copytree(tmp_path / "images", tmp_path / "moved", copy_function=shutil.copyfile)
    moved = split_of([tmp_path / "moved" / path.relative_to(tmp_path / "images") for path in split.paths])
    assert build_cache(moved, SPEC, tmp_path / "cache").decoded == 0
    assert plan_cache(moved, SPEC, tmp_path / "cache").data == entry.path


def test_image_changed_without_its_size_is_decoded_anew_because_its_time_tells(tmp_path) -> None:
    split = images_of(tmp_path / "images")
    entry = build_cache(split, SPEC, tmp_path / "cache")
    swap(split.paths[4], entry_time=False)
    again = build_cache(split, SPEC, tmp_path / "cache")
    assert again.decoded == 30
    assert again.path == entry.path
    np.testing.assert_array_equal(open_cache(split, SPEC, tmp_path / "cache"), decode_split(split, SPEC))


def test_image_changed_with_its_size_and_time_kept_is_found_by_verify_alone(tmp_path) -> None:
    split = images_of(tmp_path / "images")
    build_cache(split, SPEC, tmp_path / "cache")
    verify_cache(split, SPEC, tmp_path / "cache")
    swap(split.paths[4], entry_time=True)
    assert build_cache(split, SPEC, tmp_path / "cache").decoded == 0  # what a cheap look cannot see
    with pytest.raises(DataError, match=r"images 0 to 29 of train hold something else than when they were cached"):
        verify_cache(split, SPEC, tmp_path / "cache")


def swap(path: Path, *, entry_time: bool) -> None:
    """One gray value changed inside an uncompressed PNG chunk: same size, valid checksums."""
    import cv2

    facts = path.stat()
    image = cv2.imread(str(path), cv2.IMREAD_UNCHANGED)
    for value in range(256):
        image[0, 0] = value
        content = cv2.imencode(".png", image)[1].tobytes()
        if len(content) == facts.st_size and content != path.read_bytes():
            path.write_bytes(content)
            os.utime(path, ns=(facts.st_mtime_ns, facts.st_mtime_ns + (0 if entry_time else 1_000_000)))
            return
    raise AssertionError("no other image of the same size found")


@pytest.mark.parametrize("where", [0, 127, 128, -1])
def test_verify_cache_finds_one_flipped_bit_anywhere_and_delete_repairs(tmp_path, where, small_chunks) -> None:
    split = images_of(tmp_path / "images")
    entry = build_cache(split, SPEC, tmp_path / "cache")
    content = bytearray(entry.path.read_bytes())
    content[where] ^= 1
    entry.path.write_bytes(content)
    with pytest.raises(DataError, match=r"the cache .* is damaged .*; delete .*\.npy and run the same command again"):
        verify_cache(split, SPEC, tmp_path / "cache")
    entry.path.unlink()
    assert build_cache(split, SPEC, tmp_path / "cache").sha256 == entry.sha256
    assert verify_cache(split, SPEC, tmp_path / "cache").images == 30


@pytest.mark.parametrize("damage", ["no manifest", "cut manifest", "foreign manifest", "short data", "old version"])
def test_cache_that_is_not_whole_is_not_opened_and_built_anew(tmp_path, damage, monkeypatch) -> None:
    split = images_of(tmp_path / "images")
    entry = build_cache(split, SPEC, tmp_path / "cache")
    manifest = entry.path.with_suffix(".json")
    if damage == "no manifest":
        manifest.unlink()
    elif damage == "cut manifest":
        manifest.write_bytes(manifest.read_bytes()[:-40])
    elif damage == "foreign manifest":
        manifest.write_text("[1, 2]")
    elif damage == "short data":
        os.truncate(entry.path, entry.bytes - 1)
    else:
        monkeypatch.setattr(cache_file, "PREPROCESS_VERSION", PREPROCESS_VERSION + 1)
    with pytest.raises(DataError, match="build it first"):
        open_cache(split, SPEC, tmp_path / "cache")
    assert build_cache(split, SPEC, tmp_path / "cache").decoded == 30


def test_corrupt_images_are_named_together_and_only_their_chunks_are_decoded_after_repair(
    tmp_path, small_chunks
) -> None:
    split = images_of(tmp_path / "images")
    healthy = {row: split.paths[row].read_bytes() for row in (3, 20)}
    for row, content in healthy.items():
        split.paths[row].write_bytes(content[:-9])
    with pytest.raises(DataError, match=r"2 of the 30 images in train cannot be used: .*_006.*; .*_011") as caught:
        build_cache(split, SPEC, tmp_path / "cache")
    assert all(split.paths[row].name in str(caught.value) for row in healthy)
    assert names_in(tmp_path / "cache") == [".journal", ".partial"]
    with pytest.raises(DataError, match="build it first"):
        open_cache(split, SPEC, tmp_path / "cache")
    for row, content in healthy.items():
        split.paths[row].write_bytes(content)
    assert build_cache(split, SPEC, tmp_path / "cache").decoded == 16
    np.testing.assert_array_equal(open_cache(split, SPEC, tmp_path / "cache"), decode_split(split, SPEC))
    assert names_in(tmp_path / "cache") == [".json", ".npy"]


def test_missing_image_is_reported_like_a_corrupt_one(tmp_path) -> None:
    split = images_of(tmp_path / "images")
    split.paths[7].unlink()
    with pytest.raises(DataError, match=r"1 of the 30 images in train cannot be used: .*not found"):
        build_cache(split, SPEC, tmp_path / "cache")


def test_build_cache_of_arrays_tells_other_arrays_apart(tmp_path, small_chunks) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (20, 28, 28), np.uint8)

    def split(array: np.ndarray) -> Split:
        return Split("test", (), np.zeros((20, 1), np.float32), ("",) * 20, pixels=array)

    cached = decode_split(split(pixels), SPEC, cache_dir=tmp_path / "cache")
    np.testing.assert_array_equal(cached, [resize_uint8(to_uint8(image, SPEC), SPEC) for image in pixels])
    other = pixels.copy()
    other[11, 5, 5] ^= 255
    assert build_cache(split(other), SPEC, tmp_path / "cache").decoded == 20
    assert build_cache(split(pixels), SPEC, tmp_path / "cache").decoded == 0


def test_build_cache_without_images_is_refused_and_decode_split_gives_an_empty_array(tmp_path) -> None:
    none = split_of([], "dev")
    with pytest.raises(DataError, match="expected images to cache, the dev split has none"):
        build_cache(none, SPEC, tmp_path)
    assert decode_split(none, SPEC, cache_dir=tmp_path).shape == (0, 16, 16)


def test_folder_that_cannot_be_written_is_one_clear_line(tmp_path) -> None:
    split = images_of(tmp_path / "images")
    (tmp_path / "file").write_text("")
    with pytest.raises(
        CompressionError, match=r"could not create the folder .*file: File exists; choose one you may write to"
    ):
        build_cache(split, SPEC, tmp_path / "file")


def test_preprocess_version_stands_for_these_bytes() -> None:
    """When this fails, PREPROCESS_VERSION must count up: caches of before hold other bytes than decoding gives now."""
    image = (np.arange(64 * 48, dtype=np.uint64) * 2654435761 % 2**32 >> 16).astype(np.uint16).reshape(64, 48)
    decoded = [prepare(data, SPEC).pixels for data in (png(image), png(image >> 4), with_exif(png(image), exif(6)))]
    found = [zlib.crc32(pixels.tobytes()) for pixels in decoded]
    assert (PREPROCESS_VERSION, found) == (2, [2645436711, 116275808, 2594152166])
