"""Files of format version 1, which are out there, are still read; what they could not say has a default."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest

from cxr_compress.device.classifier import Classifier
from cxr_compress.device.modelfile import ModelFile, pack_model, read_model
from cxr_compress.device.modelinfo import FORMAT_VERSION, NOT_STATED, ModelInfo
from cxr_compress.device.verify import verify_model
from cxr_compress.errors import ModelFileError
from tests.device.images import draw_image
from tests.device.reference import INT8_MODEL, VERSION1_MODEL

SHELF = Path(__file__).resolve().parents[2] / "tflite_models"


def test_read_version_1_gives_the_defaults_of_what_came_later() -> None:
    assert b'"format_version": 1' in VERSION1_MODEL.read_bytes()
    info = read_model(VERSION1_MODEL).info
    assert (info.calibration_source, info.model_card, info.canonical_hash) == (NOT_STATED, "", "")
    assert info.reference is None
    assert info.labels == read_model(INT8_MODEL).info.labels
    assert info.thresholds == (0.5, 0.45)


def test_classify_version_1_and_2_of_one_model_agree() -> None:
    old, new = (Classifier(path).predict(draw_image(0)).to_dict() for path in (VERSION1_MODEL, INT8_MODEL))
    assert old == new


def test_verify_version_1_says_that_it_carries_no_reference_outputs() -> None:
    with pytest.raises(
        ModelFileError, match=r"version1\.tflite: carries no reference outputs .*; convert the model again"
    ):
        verify_model(VERSION1_MODEL)


def test_pack_what_a_version_1_file_says_becomes_a_file_of_this_version(tmp_path: Path) -> None:
    old = read_model(VERSION1_MODEL)
    path = tmp_path / "new.tflite"
    path.write_bytes(pack_model(old.content, old.info))
    new = read_model(path)
    assert (new.content, new.info) == (old.content, old.info)
    assert new.info.to_dict()["format_version"] == FORMAT_VERSION


def test_pack_a_softmax_needs_version_3_and_reads_back(tmp_path: Path) -> None:
    """A reader of version 2 would take a sigmoid of each logit without a word: it has to refuse the file."""
    file = read_model(INT8_MODEL)
    info = dataclasses.replace(file.info, activation="softmax")
    path = tmp_path / "softmax.tflite"
    path.write_bytes(pack_model(file.content, info))
    assert b'"format_version": 3' in path.read_bytes()
    assert read_model(path).info == info


def test_info_unknown_activation_is_refused() -> None:
    info = read_model(INT8_MODEL).info
    with pytest.raises(ModelFileError, match="expected activation to be one of sigmoid, softmax, got 'tanh'"):
        dataclasses.replace(info, activation="tanh")
    with pytest.raises(ModelFileError, match="expected outputs to be one of logits, probabilities, got 'scores'"):
        dataclasses.replace(info, outputs="scores")


@pytest.mark.parametrize("activation", ["sigmoid", "softmax"])
def test_logits_of_probabilities_give_those_probabilities_back(activation: str) -> None:
    info = dataclasses.replace(
        read_model(INT8_MODEL).info,
        activation=activation,
        outputs="probabilities",
        logit_slope=(1.0, 1.0),
        logit_offset=(0.0, 0.0),
    )
    given = np.array([[0.25, 0.75], [1e-6, 1 - 1e-6], [0.5, 0.5]], np.float32)
    # float32 logits near 14 are 1e-6 apart, which moves no probability by more than a quarter of that.
    np.testing.assert_allclose(info.probabilities(info.logits_of(given)), given, atol=3e-7)
    assert np.isfinite(info.logits_of(np.array([[0.0, 1.0]]))).all()
    twice = dataclasses.replace(info, outputs="logits")  # the control: a second sigmoid
    assert np.abs(twice.probabilities(twice.logits_of(given)) - given).max() > 0.1


def test_probabilities_of_a_softmax_sum_to_one_and_those_of_sigmoids_do_not() -> None:
    info = dataclasses.replace(read_model(INT8_MODEL).info, logit_slope=(1.0, 1.0), logit_offset=(0.0, 0.0))
    logits = np.array([[1000.0, 999.0], [-1e4, 1e4], [0.0, 0.0]])
    shared = dataclasses.replace(info, activation="softmax").probabilities(logits)
    np.testing.assert_allclose(shared.sum(axis=1), 1.0, rtol=1e-6)
    assert shared[0, 0] == pytest.approx(1 / (1 + np.exp(-1.0)), rel=1e-6)
    assert info.probabilities(logits).sum(axis=1)[0] == 2.0


def test_read_version_1_with_a_changed_byte_is_refused_or_reads_equal(tmp_path: Path) -> None:
    """Version 1 has no hash over its archive: what may pass there are bytes that say nothing."""
    whole, data = read_model(VERSION1_MODEL), VERSION1_MODEL.read_bytes()
    path, passed = tmp_path / "model.tflite", 0
    for position in range(len(whole.content) - 50, len(data), 7):
        broken = bytearray(data)
        broken[position] ^= 0x55
        path.write_bytes(bytes(broken))
        try:
            file = read_model(path)
        except ModelFileError:
            continue
        assert (file.content, file.info) == (whole.content, whole.info)
        passed += 1
    assert passed < 30


@pytest.mark.parametrize("path", sorted(SHELF.glob("*.tflite")), ids=lambda path: path.stem)
def test_read_shipped_model_of_any_version_runs(path: Path) -> None:
    file = read_model(path)
    assert isinstance(file, ModelFile)
    assert ModelInfo.from_json(file.info.to_json()) == file.info
    found = Classifier(file).predict(draw_image(0))
    assert found.labels == file.info.labels
