"""What a model file says about itself: kept byte for byte, invisible to Keras, and refused where damaged."""

from __future__ import annotations

import json
import zipfile
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cxr_compress.device.image_checks import ImageStatistics
from cxr_compress.device.spec import PreprocessSpec
from cxr_compress.errors import CompressionError, DataError, ModelFileError
from cxr_compress.keras2 import keras
from cxr_compress.models import chexnet
from cxr_compress.models.about import ABOUT_ENTRY, ModelAbout
from cxr_compress.models.files import load_model, read_about, save_model
from tests.models.test_files import edited, save_h5

ABOUT = ModelAbout(
    findings=("Mass", "Nodule"),
    preprocess=PreprocessSpec(32, 32, channels=1, mean=(0.5,), std=(0.25,)),
    dataset="a set",
    attribution="someone, CC BY 4.0",
    pos_weight=(2.0, 3.5),
    notes="für Tests",
)


def small_net() -> keras.Model:
    keras.utils.set_random_seed(0)
    return chexnet(2, (32, 32, 3), width=0.1, blocks=(1, 1))


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    path = tmp_path_factory.mktemp("about") / "net.keras"
    save_model(small_net(), path, about=ABOUT)
    return path


def test_save_model_about_comes_back_and_equal_about_gives_equal_bytes(saved, tmp_path):
    assert read_about(saved) == ABOUT
    save_model(small_net(), tmp_path / "again.keras", about=ABOUT)
    assert (tmp_path / "again.keras").read_bytes() == saved.read_bytes()
    save_model(small_net(), tmp_path / "plain.keras")
    assert (tmp_path / "plain.keras").read_bytes() != saved.read_bytes()
    with zipfile.ZipFile(saved) as archive:
        assert {entry.date_time for entry in archive.infolist()} == {(1980, 1, 1, 0, 0, 0)}


def test_save_model_with_about_loads_in_plain_keras_and_here(saved):
    x = np.random.default_rng(0).normal(size=(2, 32, 32, 3)).astype(np.float32)
    expected = small_net()(x).numpy()
    for loaded in (keras.models.load_model(saved), load_model(saved)):
        np.testing.assert_array_equal(loaded(x).numpy(), expected)


def test_save_model_about_with_other_findings_than_logits_is_an_error(tmp_path):
    about = ModelAbout(("Mass",), ABOUT.preprocess)
    with pytest.raises(CompressionError, match=r"the model has 2 logits, about names 1 findings"):
        save_model(small_net(), tmp_path / "net.keras", about=about)
    assert list(tmp_path.iterdir()) == []


def test_read_about_file_that_says_nothing_gives_none(tmp_path):
    save_model(small_net(), tmp_path / "net.keras")
    save_h5(small_net(), tmp_path / "net.h5")
    assert read_about(tmp_path / "net.keras") is None
    assert read_about(tmp_path / "net.h5") is None


def test_read_about_missing_or_cut_file_is_an_error(saved, tmp_path):
    with pytest.raises(ModelFileError, match=r"none\.keras does not exist"):
        read_about(tmp_path / "none.keras")
    (tmp_path / "cut.keras").write_bytes(saved.read_bytes()[:-40])
    with pytest.raises(ModelFileError, match=r"cut\.keras is no complete \.keras file"):
        read_about(tmp_path / "cut.keras")


def changed(**fields):
    return lambda old: json.dumps({**json.loads(old), **fields}).encode()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda old: old[:-20], "does not say what its model is for"),
        (lambda old: b"[1]", "expected an object, got list"),
        (lambda old: b"[" * 100_000, "does not say what its model is for"),
        (lambda old: b"\xff\xfe", "does not say what its model is for"),
        (changed(color="blue"), r"unknown keys \['color'\]"),
        (changed(findings=[]), "expected findings as a list of at least one name"),
        (changed(preprocess=None), "expected preprocess as an object"),
        (changed(preprocess={"height": 0, "width": 3}), "expected height as a whole number above 0"),
        (changed(pos_weight=[1.0]), "expected pos_weight as 2 finite numbers above 0"),
        (lambda old: b" " * (1 << 21), "far too large"),
    ],
)
def test_read_about_damaged_entry_is_one_clear_error(saved, tmp_path, change, message):
    path = edited(saved, tmp_path / "damaged.keras", ABOUT_ENTRY, change)
    with pytest.raises(ModelFileError, match=message) as caught:
        read_about(path)
    assert "\n" not in str(caught.value)


@given(st.integers(0, 10_000), st.integers(1, 255))
def test_read_about_any_flipped_byte_gives_the_same_or_an_error(saved, tmp_path, position, flip):
    content = bytearray(saved.read_bytes())
    content[-1 - position % len(content)] ^= flip  # the directory of the archive lies at its end
    path = tmp_path / "flipped.keras"
    path.write_bytes(content)
    try:
        about = read_about(path)
    except ModelFileError:
        return
    assert about in (None, ABOUT)  # a changed name of the entry hides it; its content is under a checksum


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"findings": ("Mass", "Mass")}, r"the findings \['Mass'\] stand there twice"),
        ({"findings": "Mass"}, "expected findings as a list of names"),
        ({"preprocess": {"height": 3}}, "expected preprocess as a PreprocessSpec"),
        ({"notes": None}, "expected notes as a text"),
        ({"pos_weight": (0.0, 1.0)}, "expected pos_weight as 2 finite numbers above 0"),
        ({"pos_weight": 3}, "expected pos_weight as 2 numbers"),
        ({"images": (0.5, 0.2)}, "expected images as ImageStatistics"),
    ],
)
def test_model_about_wrong_field_is_an_error(fields, message):
    with pytest.raises(DataError, match=message):
        ModelAbout(**{"findings": ("Mass", "Nodule"), "preprocess": ABOUT.preprocess, **fields})


def test_model_about_from_dict_missing_key_is_an_error():
    with pytest.raises(DataError, match=r"missing keys \['preprocess'\]"):
        ModelAbout.from_dict({"findings": ["Mass"]})


def test_model_about_with_image_statistics_survives_and_without_them_says_nothing_of_them():
    assert "images" not in ABOUT.to_dict()  # files that were made before have the same bytes
    with_images = replace(ABOUT, images=ImageStatistics((0.5,), (0.25,)))
    assert ModelAbout.from_bytes(with_images.to_bytes(), "model.keras") == with_images != ABOUT
    with pytest.raises(DataError, match="expected mean and std of images, got 3"):
        ModelAbout.from_dict({**ABOUT.to_dict(), "images": 3})
