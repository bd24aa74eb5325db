"""What training decodes is what the device decodes, bit for bit; bad files are named."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest

from cxr_compress.data import Split, decode_split
from cxr_compress.data.decoding import ImageNoteWarning
from cxr_compress.device.preprocess import PreprocessSpec, decode_image, normalize, preprocess, to_uint8
from cxr_compress.errors import DataError
from tests.data.files import draw
from tests.device.images import draw_image, png


def make_split(folder: Path, names: list[str], **options) -> Split:
    for seed, name in enumerate(names):
        draw(folder / name, seed=seed, **options)
    count = len(names)
    labels = (np.arange(count) % 2)[:, None].astype(np.float32)
    return Split("train", tuple(folder / name for name in names), labels, tuple(f"p{i}" for i in range(count)))


@pytest.mark.parametrize(("suffix", "depth"), [(".png", 8), (".png", 16), (".jpg", 8)])
@pytest.mark.parametrize("color", ["gray", "rgb"])
def test_decode_split_then_normalize_equals_the_device_bit_for_bit(tmp_path, suffix, depth, color) -> None:
    split = make_split(tmp_path, [f"{i}{suffix}" for i in range(5)], size=90, depth=depth)
    spec = PreprocessSpec(33, 40, color=color)
    trained_on = normalize(decode_split(split, spec), spec)
    on_device = np.stack([preprocess(path, spec) for path in split.paths])
    assert trained_on.dtype == on_device.dtype == np.float32
    np.testing.assert_array_equal(trained_on, on_device)
    # The control: the same files through another resize are far away (one gray level is 0.017 after normalizing).
    other = np.stack(
        [
            normalize(cv2.resize(to_uint8(decode_image(path), spec), (40, 33), interpolation=cv2.INTER_LINEAR), spec)
            for path in split.paths
        ]
    )
    assert np.abs(trained_on - other).max() > 0.5


def test_decode_split_many_images_keeps_the_order_whatever_the_number_of_threads(tmp_path) -> None:
    split = make_split(tmp_path, [f"{i}.png" for i in range(100)], size=16)
    spec = PreprocessSpec(16, 16)
    one = decode_split(split, spec, workers=1)
    assert one.shape == (100, 16, 16)
    assert one.dtype == np.uint8
    assert len(np.unique(one.reshape(100, -1), axis=0)) == 100
    np.testing.assert_array_equal(one, decode_split(split, spec, workers=7))
    for row in (0, 37, 99):
        np.testing.assert_array_equal(one[row], decode_image(split.paths[row]))


def test_decode_split_progress_counts_up_to_all_images(tmp_path) -> None:
    split = make_split(tmp_path, [f"{i}.png" for i in range(50)], size=8)
    seen: list[tuple[int, int]] = []
    decode_split(split, PreprocessSpec(8, 8), workers=2, progress=lambda done, total: seen.append((done, total)))
    assert seen == sorted(seen)
    assert seen[-1] == (50, 50)
    assert len(seen) > 2


def test_decode_split_no_images_gives_an_empty_array() -> None:
    none = Split("dev", (), np.empty((0, 1), np.float32), ())
    assert decode_split(none, PreprocessSpec(8, 9)).shape == (0, 8, 9)


def test_decode_split_bad_files_are_counted_and_five_are_named(tmp_path) -> None:
    names = [f"image{i}.png" for i in range(12)]
    split = make_split(tmp_path, names)
    for name in names[3:10]:
        (tmp_path / name).write_bytes((tmp_path / name).read_bytes()[:-20])
    (tmp_path / "image10.png").unlink()
    with pytest.raises(DataError, match=r"8 of the 12 images in train cannot be used: .*; and 3 more") as caught:
        decode_split(split, PreprocessSpec(8, 8))
    message = str(caught.value)
    assert [name for name in names if name in message] == names[3:8]
    assert "\n" not in message


def test_decode_split_color_photo_for_a_gray_model_is_refused_by_name(tmp_path) -> None:
    split = make_split(tmp_path, ["a.png", "b.png"])
    cv2.imwrite(str(tmp_path / "b.png"), np.full((20, 20, 3), (10, 200, 90), np.uint8))
    with pytest.raises(DataError, match=r"1 of the 2 images in train cannot be used: .*b\.png: expected a gray image"):
        decode_split(split, PreprocessSpec(8, 8))


@pytest.mark.parametrize("color", ["gray", "rgb"])
def test_decode_split_of_arrays_equals_the_device_on_each_array(color) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (40, 28, 28), np.uint8)
    split = Split("train", (), np.zeros((40, 1), np.float32), ("",) * 40, pixels=pixels)
    spec = PreprocessSpec(14, 20, color=color)
    decoded = decode_split(split, spec, workers=3)
    np.testing.assert_array_equal(normalize(decoded, spec), [preprocess(image, spec) for image in pixels])
    assert np.abs(normalize(decoded[::-1], spec) - normalize(decoded, spec)).max() > 0.5


def test_decode_split_of_color_arrays_for_a_gray_model_is_refused_by_position() -> None:
    pixels = np.repeat(np.random.default_rng(0).integers(0, 256, (3, 28, 28, 1), np.uint8), 3, axis=3)
    pixels[1, ..., 0] ^= 128
    split = Split("test", (), np.zeros((3, 1), np.float32), ("",) * 3, pixels=pixels)
    with pytest.raises(DataError, match=r"1 of the 3 images in test cannot be used: image 1: expected a gray image"):
        decode_split(split, PreprocessSpec(28, 28))


def test_decode_split_interrupted_in_a_progress_call_ends_at_once(tmp_path) -> None:
    split = make_split(tmp_path, [f"{i}.png" for i in range(400)], size=8)
    told: list[int] = []

    def interrupt(done: int, total: int) -> None:
        told.append(done)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        decode_split(split, PreprocessSpec(8, 8), workers=1, progress=interrupt)
    assert told == [8]


@pytest.mark.parametrize("cached", [False, True])
def test_decode_split_says_once_how_many_images_were_not_read_as_declared(tmp_path, cached) -> None:
    split = make_split(tmp_path, [f"name{number}.png" for number in range(12)])
    for number, path in enumerate(split.paths):
        path.write_bytes(png(draw_image(number).astype(np.uint16) * (257 if number % 3 else 16)))
    with pytest.warns(ImageNoteWarning) as told:
        decode_split(split, PreprocessSpec(16, 16), cache_dir=tmp_path / "cache" if cached else None)
    (text,) = [str(warning.message) for warning in told]
    assert text.startswith("4 of the 12 images in train need a look, the first is image 1: it uses 12 of 16 bits")
    assert "name0" not in text


@pytest.mark.parametrize("own", [False, True])
def test_decode_split_counts_images_that_have_fewer_pixels_than_the_model_takes(tmp_path, own) -> None:
    split = make_split(tmp_path, [f"{number}.png" for number in range(6)], size=24)
    for path in split.paths[:2]:
        draw(path, seed=0, size=12)
    if own:
        pixels = np.random.default_rng(0).integers(0, 256, (6, 12, 12), np.uint8)
        split = Split("train", (), split.labels, split.patients, pixels=pixels)
    with pytest.warns(ImageNoteWarning) as told:
        decode_split(split, PreprocessSpec(20, 20))
    (text,) = [str(warning.message) for warning in told]
    assert text.startswith(f"{6 if own else 2} of the 6 images read of train have fewer pixels than the 20 x 20")
    assert text.endswith("enlarged; the smallest has 12 x 12")
    decode_split(split, PreprocessSpec(12, 12))  # control: no warning, which would be an error
