"""File -> uint8 -> float32, bit for bit, for every kind of file, on every machine and runtime these tests run on."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from cxr_compress.device.decode import decode_image
from cxr_compress.device.golden import GOLDEN_SIZE, fingerprint_array, golden_film
from cxr_compress.device.preprocess import PreprocessSpec, load_uint8, normalize, preprocess
from cxr_compress.device.spec import PRESETS
from tests.device.golden import FILMS

EXPECTED: dict[str, dict[str, str]] = json.loads((FILMS / "expected.json").read_text())
SPEC = PreprocessSpec(GOLDEN_SIZE, GOLDEN_SIZE)
NAMES = ["film8.png", "film16.png", "film.jpg", "film12.dcm"]


@pytest.fixture(params=NAMES)
def film(request: pytest.FixtureRequest) -> Path:
    if request.param.endswith(".dcm"):
        pytest.importorskip("pydicom")
    path: Path = FILMS / request.param
    return path


def test_golden_list_is_complete() -> None:
    assert sorted(EXPECTED) == sorted(NAMES)
    assert all(set(kinds) == {"uint8", *PRESETS} for kinds in EXPECTED.values())


def test_golden_film_becomes_the_recorded_pixels(film: Path) -> None:
    assert fingerprint_array(load_uint8(film, SPEC)) == EXPECTED[film.name]["uint8"]


@pytest.mark.parametrize("preset", PRESETS)
def test_golden_film_becomes_the_recorded_tensor(film: Path, preset: str) -> None:
    spec = PreprocessSpec.preset(preset, GOLDEN_SIZE, GOLDEN_SIZE)
    assert fingerprint_array(preprocess(film, spec)) == EXPECTED[film.name][preset]


def test_golden_film_control_one_level_or_one_step_changes_the_fingerprint(film: Path) -> None:
    pixels = load_uint8(film, SPEC)
    tensor = normalize(pixels, SPEC)
    pixels[3, 4] ^= 1
    assert fingerprint_array(pixels) != EXPECTED[film.name]["uint8"]
    tensor[3, 4, 1] = np.nextafter(tensor[3, 4, 1], np.float32(9))
    assert fingerprint_array(tensor) != EXPECTED[film.name]["imagenet_torch"]


def test_golden_film_is_drawn_the_same_everywhere() -> None:
    np.testing.assert_array_equal(decode_image(FILMS / "film8.png"), golden_film(8))
    np.testing.assert_array_equal(decode_image(FILMS / "film16.png"), golden_film(16))
    np.testing.assert_array_equal(decode_image(FILMS / "film.jpg"), golden_film(8))  # flat blocks: no loss


def test_golden_dicom_is_the_windowed_negative() -> None:
    pytest.importorskip("pydicom")
    stored = 4095.0 - golden_film(12)
    # LINEAR of PS3.3 C.11.2.1.2.1 on 2 x - 100, center 4000, width 7000; MONOCHROME1.
    level = np.clip((2 * stored - 100 - 3999.5) / 6999 + 0.5, 0, 1) * 255
    assert np.abs(decode_image(FILMS / "film12.dcm") - (255 - level)).max() <= 0.5


def test_golden_8_bit_kinds_agree() -> None:
    assert EXPECTED["film8.png"] == EXPECTED["film.jpg"]
    assert EXPECTED["film16.png"] != EXPECTED["film8.png"]
