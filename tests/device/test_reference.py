"""File -> uint8 -> float32, bit for bit, for every kind of file, on every machine and runtime these tests run on."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from cxr_compress.device.decode import decode_image
from cxr_compress.device.preprocess import PreprocessSpec, load_uint8, normalize, preprocess
from cxr_compress.device.spec import PRESETS
from tests.device.reference import IMAGES
from tests.device.reference.drawing import REFERENCE_SIZE, fingerprint_array, reference_image

EXPECTED: dict[str, dict[str, str]] = json.loads((IMAGES / "expected.json").read_text())
SPEC = PreprocessSpec(REFERENCE_SIZE, REFERENCE_SIZE)
NAMES = ["image8.png", "image16.png", "image.jpg", "image12.dcm"]


@pytest.fixture(params=NAMES)
def image(request: pytest.FixtureRequest) -> Path:
    if request.param.endswith(".dcm"):
        pytest.importorskip("pydicom")
    path: Path = IMAGES / request.param
    return path


def test_reference_list_is_complete() -> None:
    assert sorted(EXPECTED) == sorted(NAMES)
    assert all(set(kinds) == {"uint8", *PRESETS} for kinds in EXPECTED.values())


def test_reference_image_becomes_the_recorded_pixels(image: Path) -> None:
    assert fingerprint_array(load_uint8(image, SPEC)) == EXPECTED[image.name]["uint8"]


@pytest.mark.parametrize("preset", PRESETS)
def test_reference_image_becomes_the_recorded_tensor(image: Path, preset: str) -> None:
    spec = PreprocessSpec.preset(preset, REFERENCE_SIZE, REFERENCE_SIZE)
    assert fingerprint_array(preprocess(image, spec)) == EXPECTED[image.name][preset]


def test_reference_image_control_one_level_or_one_step_changes_the_fingerprint(image: Path) -> None:
    pixels = load_uint8(image, SPEC)
    tensor = normalize(pixels, SPEC)
    pixels[3, 4] ^= 1
    assert fingerprint_array(pixels) != EXPECTED[image.name]["uint8"]
    tensor[3, 4, 1] = np.nextafter(tensor[3, 4, 1], np.float32(9))
    assert fingerprint_array(tensor) != EXPECTED[image.name]["imagenet_torch"]


def test_reference_image_is_drawn_the_same_everywhere() -> None:
    np.testing.assert_array_equal(decode_image(IMAGES / "image8.png"), reference_image(8))
    np.testing.assert_array_equal(decode_image(IMAGES / "image16.png"), reference_image(16))
    np.testing.assert_array_equal(decode_image(IMAGES / "image.jpg"), reference_image(8))  # flat blocks: no loss


def test_reference_dicom_is_the_windowed_negative() -> None:
    pytest.importorskip("pydicom")
    stored = 4095.0 - reference_image(12)
    # LINEAR of PS3.3 C.11.2.1.2.1 on 2 x - 100, center 4000, width 7000; MONOCHROME1.
    level = np.clip((2 * stored - 100 - 3999.5) / 6999 + 0.5, 0, 1) * 255
    assert np.abs(decode_image(IMAGES / "image12.dcm") - (255 - level)).max() <= 0.5


def test_reference_8_bit_kinds_agree() -> None:
    assert EXPECTED["image8.png"] == EXPECTED["image.jpg"]
    assert EXPECTED["image16.png"] != EXPECTED["image8.png"]
