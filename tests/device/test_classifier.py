from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cxr_compress.device.classifier import Classifier
from cxr_compress.device.dicom import DicomView
from cxr_compress.device.image_checks import in_short
from cxr_compress.device.modelfile import ModelFile, pack_model, read_model
from cxr_compress.device.preprocess import ImageGateWarning, PreprocessSpec, preprocess
from cxr_compress.errors import DataError, ModelFileError
from tests.device.images import color_photo, draw_image, png
from tests.device.reference import EXPECTED, FLOAT_MODEL, INT8_MODEL

REFERENCE: dict[str, Any] = json.loads(EXPECTED.read_text())
# DESIGN: int8 outputs of two runtimes, or two processors, differ by up to 3 steps of the output.
LSB_TOLERANCE = 3
# Sums of at most 108 float32 products of order 1, in another order on another machine: about 108 * 2**-24 a layer.
FLOAT_TOLERANCE = 1e-4


@pytest.fixture(scope="module", params=[INT8_MODEL, FLOAT_MODEL], ids=["int8", "float"])
def model(request: pytest.FixtureRequest) -> Path:
    path: Path = request.param
    return path


@pytest.fixture(scope="module")
def classifier(model: Path) -> Classifier:
    return Classifier(model)


def images() -> np.ndarray:
    spec = PreprocessSpec(32, 32)
    return np.stack([preprocess(draw_image(seed), spec) for seed in REFERENCE["seeds"]])


def tolerance(classifier: Classifier) -> float:
    scale = classifier.output_scale
    return FLOAT_TOLERANCE if scale is None else LSB_TOLERANCE * scale + 1e-6


def test_logits_reference_images_are_the_recorded_ones(model: Path, classifier: Classifier) -> None:
    expected = np.asarray(REFERENCE[model.name]["logits"], np.float32)
    logits = classifier.logits(images())
    assert logits.dtype == np.float32
    assert np.abs(logits - expected).max() <= tolerance(classifier)


def test_logits_reference_control_other_images_differ(model: Path, classifier: Classifier) -> None:
    expected = np.asarray(REFERENCE[model.name]["logits"], np.float32)
    differences = np.abs(classifier.logits(images()[::-1]) - expected).max(axis=0)
    assert (differences > 5 * tolerance(classifier)).all()


def test_logits_int8_file_stays_close_to_the_keras_model() -> None:
    classifier = Classifier(INT8_MODEL)
    keras_logits = np.asarray(REFERENCE["keras_logits"])
    logits = classifier.logits(images())
    # The order of the images survives: correlation per finding, and each sign that is clear of zero.
    for finding in range(2):
        assert np.corrcoef(logits[:, finding], keras_logits[:, finding])[0, 1] > 0.98
    clear = np.abs(keras_logits) > 0.5
    np.testing.assert_array_equal(logits[clear] > 0, keras_logits[clear] > 0)


def test_classifier_says_what_it_is(model: Path, classifier: Classifier) -> None:
    assert classifier.labels == classifier.info.labels == ("opacity", "large heart")
    assert classifier.spec == PreprocessSpec(32, 32)
    assert classifier.runtime.split()[0] in ("ai-edge-litert", "tflite-runtime")
    if model == INT8_MODEL:
        assert classifier.output_scale == pytest.approx(REFERENCE[model.name]["output_scale"])
    else:
        assert classifier.output_scale is None


def test_logits_int8_are_whole_steps_of_the_output_scale() -> None:
    classifier = Classifier(INT8_MODEL)
    assert classifier.output_scale is not None
    steps = classifier.logits(images()) / classifier.output_scale
    assert np.abs(steps - np.rint(steps)).max() < 1e-3


def test_logits_batch_equals_single_images_bit_for_bit(classifier: Classifier) -> None:
    batch = images()
    together = classifier.logits(batch)
    np.testing.assert_array_equal(together, np.concatenate([classifier.logits(image[np.newaxis]) for image in batch]))


def test_logits_repeated_call_and_second_classifier_give_the_same_bits(model: Path, classifier: Classifier) -> None:
    batch = images()
    first = classifier.logits(batch)
    classifier.logits(batch[::-1])
    np.testing.assert_array_equal(classifier.logits(batch), first)
    np.testing.assert_array_equal(Classifier(read_model(model)).logits(batch), first)


def test_logits_more_threads_give_the_same_decisions(model: Path, classifier: Classifier) -> None:
    difference = np.abs(Classifier(model, num_threads=2).logits(images()) - classifier.logits(images())).max()
    assert difference <= tolerance(classifier)


def test_logits_returned_array_is_not_the_interpreters_memory(classifier: Classifier) -> None:
    batch = images()
    first = classifier.logits(batch[:1])
    kept = first.copy()
    classifier.logits(batch[1:2])
    np.testing.assert_array_equal(first, kept)


def test_logits_empty_batch_gives_no_rows(classifier: Classifier) -> None:
    assert classifier.logits(np.zeros((0, 32, 32, 3), np.float32)).shape == (0, 2)


def test_logits_far_outside_the_range_saturate_and_stay_finite(classifier: Classifier) -> None:
    assert np.isfinite(classifier.logits(np.full((1, 32, 32, 3), 1e9, np.float32))).all()


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_logits_nan_or_infinite_pixel_names_the_image(classifier: Classifier, value: float) -> None:
    batch = images()
    batch[2, 5, 6, 1] = value
    with pytest.raises(DataError, match="expected finite pixels, image 2 of the batch holds NaN or infinity"):
        classifier.logits(batch)


@pytest.mark.parametrize(
    "batch",
    [
        np.zeros((32, 32, 3), np.float32),
        np.zeros((1, 32, 32, 1), np.float32),
        np.zeros((1, 3, 32, 32), np.float32),
        np.zeros((1, 64, 64, 3), np.float32),
        np.zeros((1, 32, 32, 3), np.float64),
        np.zeros((1, 32, 32, 3), np.uint8),
    ],
    ids=["no_batch", "one_channel", "channels_first", "size", "float64", "uint8"],
)
def test_logits_wrong_batch_says_what_was_expected(classifier: Classifier, batch: np.ndarray) -> None:
    with pytest.raises(DataError, match=r"expected float32 of shape \(n, \*\(32, 32, 3\)\), got"):
        classifier.logits(batch)


# --- probabilities and findings ---------------------------------------------------------------------------------------


def test_probabilities_known_numbers() -> None:
    classifier = Classifier(INT8_MODEL)  # slopes 1 and 0.8, offsets 0 and -0.4
    probabilities = classifier.probabilities(np.array([[0.0, 0.5], [2.0, 3.0]], np.float32))
    # sigmoid(0), sigmoid(0.8 * 0.5 - 0.4 = 0), sigmoid(2), sigmoid(0.8 * 3 - 0.4 = 2)
    np.testing.assert_allclose(probabilities, [[0.5, 0.5], [0.8807971, 0.8807971]], rtol=1e-6)
    assert probabilities.dtype == np.float32


def test_probabilities_control_uncalibrated_sigmoid_differs() -> None:
    classifier = Classifier(INT8_MODEL)
    assert abs(float(classifier.probabilities(np.array([3.0, 3.0], np.float32))[1]) - 0.9525741) > 0.05


@given(logit=st.floats(-(2.0**100), 2.0**100, width=32, allow_subnormal=False))
def test_probabilities_any_logit_is_in_range_and_symmetric(logit: float) -> None:
    classifier = _cached_int8()
    low, high = classifier.probabilities(np.array([[-logit, 0], [logit, 0]], np.float32))[:, 0]
    assert 0.0 <= low <= 1.0
    assert low + high == pytest.approx(1.0, abs=1e-6)


_CACHE: list[Classifier] = []


def _cached_int8() -> Classifier:
    if not _CACHE:
        _CACHE.append(Classifier(INT8_MODEL))
    return _CACHE[0]


def test_probabilities_wrong_last_axis_is_refused(classifier: Classifier) -> None:
    with pytest.raises(DataError, match=r"expected logits of shape \(\.\.\., 2\), got \(3,\)"):
        classifier.probabilities(np.zeros(3, np.float32))


def test_predict_file_array_and_batch_agree(classifier: Classifier, tmp_path: Path) -> None:
    image = draw_image(4)
    (tmp_path / "image.png").write_bytes(png(image))
    from_file = classifier.predict(tmp_path / "image.png")
    from_array = classifier.predict(image)
    np.testing.assert_array_equal(from_file.logits, from_array.logits)
    np.testing.assert_array_equal(from_file.logits, classifier.logits(images()[4:5])[0])
    np.testing.assert_array_equal(from_file.probabilities, classifier.probabilities(from_file.logits))


def test_predict_positive_means_at_or_above_the_threshold(model: Path) -> None:
    file = read_model(model)
    image = draw_image(0)
    probabilities = Classifier(file).predict(image).probabilities
    at = tuple(float(p) for p in probabilities)
    above = tuple(float(np.nextafter(p, np.float32(1))) for p in probabilities)
    for thresholds, expected in ((at, (True, True)), (above, (False, False))):
        moved = dataclasses.replace(file, info=dataclasses.replace(file.info, thresholds=thresholds))
        assert Classifier(moved).predict(image).positive == expected


def test_findings_to_dict_is_json_of_plain_values(classifier: Classifier) -> None:
    findings = classifier.predict(draw_image(0))
    entries = json.loads(json.dumps(findings.to_dict()))["findings"]
    assert [entry["label"] for entry in entries] == ["opacity", "large heart"]
    for entry, logit, probability in zip(entries, findings.logits, findings.probabilities, strict=True):
        assert list(entry) == ["label", "probability", "threshold", "positive", "logit"]
        # The shortest text that reads back as the same float32.
        assert np.float32(entry["logit"]) == logit
        assert np.float32(entry["probability"]) == probability
        assert len(repr(entry["probability"])) <= 16
        assert entry["positive"] is (entry["probability"] >= entry["threshold"])


def test_predict_color_photo_is_refused_unless_the_gate_is_off(model: Path) -> None:
    with pytest.raises(DataError, match="expected a gray image, got color"):
        Classifier(model).predict(color_photo())
    with pytest.warns(ImageGateWarning, match="gate is off"):
        Classifier(model, gate="off").predict(color_photo())


@pytest.mark.parametrize("blank", [np.full((40, 40), 77, np.uint8), np.zeros((40, 40), np.uint16)])
def test_predict_blank_image_is_refused_unless_the_gate_is_off(model: Path, blank: np.ndarray) -> None:
    with pytest.raises(DataError, match=r"^is blank .* go on at your own risk with --gate=off$"):
        Classifier(model).predict(blank)
    (text,) = Classifier(model, gate="off").predict(blank).warnings
    assert text.startswith("is blank")


def test_predict_bit_depth_comes_from_the_data_or_the_view(model: Path) -> None:
    image = draw_image(0).astype(np.uint16) * 16
    findings = Classifier(model).predict(image)
    assert findings.warnings[0].startswith("uses 12 of 16 bits")
    told = Classifier(model, view=DicomView(bit_depth=12)).predict(image)
    assert told.warnings == findings.warnings[1:]
    np.testing.assert_array_equal(told.logits, findings.logits)
    assert "is nearly black" in in_short(Classifier(model, view=DicomView(bit_depth=16)).predict(image).warnings[0])


def test_predict_missing_file_names_it(classifier: Classifier) -> None:
    with pytest.raises(DataError, match=r"nowhere\.png: not found"):
        classifier.predict("nowhere.png")


# --- files that contradict themselves ---------------------------------------------------------------------------------


def repacked(tmp_path: Path, **fields: Any) -> Path:
    file = read_model(INT8_MODEL)
    path = tmp_path / "model.tflite"
    path.write_bytes(pack_model(file.content, dataclasses.replace(file.info, **fields)))
    return path


def test_classifier_other_input_size_in_the_metadata_is_refused(tmp_path: Path) -> None:
    path = repacked(tmp_path, preprocess=PreprocessSpec(64, 32))
    with pytest.raises(
        ModelFileError, match=r"input has shape \(1, 32, 32, 3\), its own metadata says \(1, 64, 32, 3\)"
    ):
        Classifier(path)


def test_classifier_other_number_of_labels_is_refused(tmp_path: Path) -> None:
    three = {name: (0.5,) * 3 for name in ("logit_slope", "logit_offset", "thresholds")}
    path = repacked(tmp_path, labels=("a", "b", "c"), reference=None, **three)
    with pytest.raises(ModelFileError, match=r"output has shape \(1, 2\), its own metadata says \(1, 3\)"):
        Classifier(path)


def test_classifier_repack_control_right_metadata_is_accepted(tmp_path: Path) -> None:
    assert Classifier(repacked(tmp_path, labels=("a", "b"))).labels == ("a", "b")


def test_classifier_takes_a_read_model_file() -> None:
    file = read_model(INT8_MODEL)
    assert isinstance(file, ModelFile)
    assert Classifier(file).info is file.info
