"""Scoring a model file: the device's own numbers, what is undefined, and differences in pairs."""

from __future__ import annotations

import dataclasses
import json

import numpy as np
import pytest

from cxr_compress.device.classifier import Classifier
from cxr_compress.device.modelfile import read_model
from cxr_compress.device.preprocess import PreprocessSpec, resize_uint8
from cxr_compress.errors import DataError
from cxr_compress.evaluate import compare, score_file, score_logits
from cxr_compress.metrics import auroc, auroc_samples, bootstrap_auroc
from tests.device.images import draw_image
from tests.device.reference.make_reference import FLOAT_MODEL, INT8_MODEL, LABELS

IMAGES = 70


@pytest.fixture(scope="module")
def images() -> np.ndarray:
    spec = PreprocessSpec(32, 32)
    return np.stack([resize_uint8(draw_image(seed), spec) for seed in range(IMAGES)])


@pytest.fixture(scope="module")
def labels(images) -> np.ndarray:
    """What the float model says, with a fifth of the labels turned: AUROCs well between 0.5 and 1."""
    classifier = Classifier(FLOAT_MODEL)
    logits = np.stack([classifier.predict(image).logits for image in images])
    turned = np.random.default_rng(0).uniform(size=logits.shape) < 0.2
    return ((logits > np.median(logits, axis=0)) ^ turned).astype(np.float32)


PATIENTS = tuple(f"p{number // 2}" for number in range(IMAGES))


def test_score_file_int8_file_gives_the_numbers_of_the_device(images, labels) -> None:
    found = score_file(INT8_MODEL, images, labels, PATIENTS, LABELS, samples=200, seed=5)
    classifier = Classifier(INT8_MODEL)
    alone = [classifier.predict(image) for image in images]
    np.testing.assert_array_equal(found.logits, np.stack([one.logits for one in alone]))
    np.testing.assert_array_equal(found.decisions, np.array([one.positive for one in alone]))
    assert found.findings == LABELS
    assert found.runtime == classifier.runtime
    for k, score in enumerate(found.scores):
        expected = bootstrap_auroc(labels[:, k], found.logits[:, k], PATIENTS, samples=200, seed=5)
        assert score.auroc == expected
        assert 0.55 < score.auroc.value < 0.99
        assert (score.positives, score.negatives) == (labels[:, k].sum(), (1 - labels[:, k]).sum())
        assert score.distinct_codes == len(np.unique(found.logits[:, k]))
        assert score.distinct_codes < IMAGES  # int8 outputs repeat
        assert score.threshold == classifier.info.thresholds[k]
        sick, called = labels[:, k] == 1, found.decisions[:, k]
        assert score.sensitivity == called[sick].mean()
        assert score.specificity == 1 - called[~sick].mean()
    assert found.mean_auroc == bootstrap_auroc(labels, found.logits, PATIENTS, samples=200, seed=5)


def test_score_file_progress_counts_all_images(images, labels) -> None:
    seen: list[tuple[int, int]] = []
    score_file(
        INT8_MODEL, images, labels, PATIENTS, LABELS, samples=2, progress=lambda done, total: seen.append((done, total))
    )
    assert seen[-1] == (IMAGES, IMAGES)
    assert seen == sorted(seen)


def test_evaluation_to_dict_is_json_without_images_or_patients(images, labels) -> None:
    found = score_file(INT8_MODEL, images, labels, PATIENTS, LABELS, samples=50).to_dict()
    text = json.dumps(found, allow_nan=False)
    assert not any(f'"{patient}"' in text for patient in PATIENTS)
    assert found["images"] == IMAGES
    assert found["patients"] == IMAGES // 2
    assert set(found["findings"]) == set(LABELS)
    assert "50 resamplings of patients" in found["interval"]


def test_evaluation_to_dict_undefined_values_are_null_with_a_reason(images, labels) -> None:
    lame = labels.copy()
    lame[:, 0] = 1
    found = score_file(INT8_MODEL, images, lame, PATIENTS, LABELS, samples=50).to_dict()
    first, second = (found["findings"][label] for label in LABELS)
    assert first["auroc"] == {"value": None, "low": None, "high": None}
    assert first["specificity"] is None
    assert first["sensitivity"] is not None
    assert first["reason"] == "no image without the finding"
    assert "reason" not in second
    assert found["mean_auroc"]["value"] == second["auroc"]["value"]
    nothing = score_file(INT8_MODEL, images, np.ones_like(labels), PATIENTS, LABELS, samples=50).to_dict()
    assert nothing["mean_auroc"]["value"] is None
    assert nothing["reason"] == "no finding has images with and without it"
    json.dumps(nothing, allow_nan=False)


@pytest.mark.parametrize(
    ("findings", "rows", "message"),
    [
        (("large heart", "opacity"), IMAGES, r"findings of the model file \(opacity, large heart\) in that order"),
        (("Pneumonia",), IMAGES, "the data set has Pneumonia"),
        (LABELS, IMAGES - 1, f"got {IMAGES} images and {IMAGES - 1} rows"),
    ],
)
def test_score_file_set_of_another_kind_is_refused(images, labels, findings, rows, message) -> None:
    with pytest.raises(DataError, match=message):
        score_file(INT8_MODEL, images, labels[:rows], PATIENTS, findings)


def test_score_file_images_of_another_size_are_refused(labels) -> None:
    with pytest.raises(DataError, match=r"expected uint8 of shape \(32, 32\)"):
        score_file(INT8_MODEL, np.zeros((IMAGES, 40, 40), np.uint8), labels, PATIENTS, LABELS)


def test_score_file_no_images_is_refused() -> None:
    with pytest.raises(DataError, match="expected labels and scores"):
        score_file(INT8_MODEL, np.zeros((0, 32, 32), np.uint8), np.zeros((0, 2), np.float32), (), LABELS)


def test_score_logits_shapes_that_disagree_are_refused() -> None:
    with pytest.raises(DataError, match=r"shape \(images, 2\) and as many thresholds, got .* and 1"):
        score_logits(
            np.zeros((3, 2)), np.zeros((3, 2)), "abc", LABELS, decisions=np.zeros((3, 2), bool), thresholds=(0.5,)
        )


def test_compare_is_reference_minus_candidate_in_pairs(images, labels) -> None:
    options = {"samples": 200, "seed": 3}
    reference = score_file(FLOAT_MODEL, images, labels, PATIENTS, LABELS, **options)
    candidate = score_file(INT8_MODEL, images, labels, PATIENTS, LABELS, **options)
    found = compare(candidate, reference)
    drawn = [
        auroc_samples(labels, scored.logits, PATIENTS, **options).mean(axis=1) for scored in (reference, candidate)
    ]
    low, high = np.quantile(drawn[0] - drawn[1], [0.025, 0.975])
    drop = reference.mean_auroc.value - candidate.mean_auroc.value
    assert dataclasses.astuple(found.auroc_drop) == pytest.approx((drop, low, high), abs=1e-12)
    for k, finding in enumerate(LABELS):
        assert found.findings[finding].value == pytest.approx(
            auroc(labels[:, k], reference.logits[:, k]) - auroc(labels[:, k], candidate.logits[:, k]), abs=1e-12
        )
    assert found.decisions_changed == (candidate.decisions != reference.decisions).mean()
    assert found.auroc == candidate.mean_auroc
    assert found.auroc_drop.low < found.auroc_drop.value < found.auroc_drop.high
    assert found.logit_distance > 0
    json.dumps(found.to_dict(), allow_nan=False)
    none = compare(reference, reference)
    assert (none.auroc_drop.value, none.auroc_drop.low, none.decisions_changed) == (0.0, 0.0, 0.0)


def test_compare_other_images_are_refused(images, labels) -> None:
    whole = score_file(INT8_MODEL, images, labels, PATIENTS, LABELS, samples=2)
    part = score_file(INT8_MODEL, images[:40], labels[:40], PATIENTS[:40], LABELS, samples=2)
    with pytest.raises(DataError, match="two files scored on the same images, got 40 and 70 images"):
        compare(part, whole)
    with pytest.raises(DataError, match="two files scored on the same images"):
        compare(dataclasses.replace(whole, labels=1 - labels), whole)


def test_score_file_unknown_labels_leave_their_images_out_of_that_finding(images, labels) -> None:
    lame = labels.copy()
    lame[:10, 1] = np.nan
    found = score_file(INT8_MODEL, images, lame, PATIENTS, LABELS, samples=50)
    whole = score_file(INT8_MODEL, images, labels, PATIENTS, LABELS, samples=50)
    assert found.scores[0] == whole.scores[0]
    first, second = found.to_dict()["findings"].values()
    assert (first["images"], second["images"], second["unknown"]) == (IMAGES, IMAGES - 10, 10)
    called, truth = found.decisions[10:, 1], labels[10:, 1] == 1
    assert found.scores[1].auroc.value == auroc(labels[10:, 1], found.logits[10:, 1])
    assert found.scores[1].sensitivity == called[truth].mean()
    assert compare(found, found).auroc_drop.value == 0.0


def test_score_file_soft_labels_are_refused(images, labels) -> None:
    with pytest.raises(DataError, match="soft labels are for training only"):
        score_file(INT8_MODEL, images, labels * np.float32(0.9), PATIENTS, LABELS, samples=2)


def test_evaluation_few_images_are_marked_and_have_a_mean_of_their_own() -> None:
    rng = np.random.default_rng(0)
    labels = np.zeros((200, 3), np.float32)
    labels[:20, 0] = labels[:19, 1] = 1
    logits = (labels + rng.normal(size=labels.shape)).astype(np.float32)
    found = score_logits(logits, labels, [str(image) for image in range(200)], "abc", samples=50)
    assert [score.enough_data for score in found.scores] == [True, False, False]
    assert found.mean_auroc_enough_data == found.scores[0].auroc
    assert found.mean_auroc.value == pytest.approx((found.scores[0].auroc.value + found.scores[1].auroc.value) / 2)
    written = found.to_dict()
    assert written["mean_over"] == {"mean_auroc": ["a", "b"], "mean_auroc_enough_data": ["a"]}
    assert "mark" not in written["findings"]["a"]
    assert written["findings"]["b"]["mark"].startswith("not enough data: fewer than 20 images")
    assert written["findings"]["b"]["auroc"]["value"] == found.scores[1].auroc.value
    assert written["findings"]["a"]["threshold"] is None
    assert written["findings"]["a"]["sensitivity"] is None
    assert written["findings"]["a"]["ece"] is None
    json.dumps(written, allow_nan=False)


def test_score_file_probabilities_are_scored_where_the_file_calibrates_them(images, labels) -> None:
    found = score_file(INT8_MODEL, images, labels, PATIENTS, LABELS, samples=50)
    classifier = Classifier(INT8_MODEL)
    chances = classifier.probabilities(found.logits).astype(float)
    assert found.scores[1].brier.value == pytest.approx(((chances[:, 1] - labels[:, 1]) ** 2).mean())
    assert found.scores[1].brier.low < found.scores[1].brier.value < found.scores[1].brier.high
    assert 0 < found.scores[1].ece < 1
    plain = dataclasses.replace(
        read_model(INT8_MODEL).info, logit_slope=(1.0, 1.0), logit_offset=(0.0, 0.0), thresholds=(0.5, 0.5)
    )
    unset = dataclasses.replace(read_model(INT8_MODEL), info=plain)
    scored = score_file(unset, images, labels, PATIENTS, LABELS, samples=2)
    assert np.isnan(scored.scores[1].brier.value)
    assert scored.scores[1].sensitivity >= 0  # the threshold is there all the same
