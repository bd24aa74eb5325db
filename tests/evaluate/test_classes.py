"""Scoring, calibrating, comparing and judging classes that exclude one another."""

from __future__ import annotations

import csv
import dataclasses
import io
import json

import numpy as np
import pytest
from sklearn.metrics import balanced_accuracy_score, roc_auc_score, roc_curve

from cxr_compress.device.modelfile import ModelInfo, read_model
from cxr_compress.device.preprocess import PreprocessSpec
from cxr_compress.errors import DataError
from cxr_compress.evaluate import (
    Evaluation,
    ScorableModel,
    check_gate,
    choose_class_calibration,
    compare,
    fit_info,
    flat_columns,
    flat_rows,
    predictions_csv,
    render_evaluation,
    score_groups,
    score_logits,
    score_model,
    undo_class_weights,
)
from cxr_compress.metrics import categorical_cross_entropy, softmax
from tests.device.reference import INT8_MODEL

CLASSES = ("normal", "bacteria", "virus")
IMAGES = 300
PATIENTS = tuple(f"p{number // 3}" for number in range(IMAGES))
SPEC = PreprocessSpec(8, 8)


def drawn(seed: int = 0, sureness: float = 1.0) -> tuple[np.ndarray, np.ndarray]:
    """One-hot labels drawn from the softmax of logits, and the logits times a factor."""
    rng = np.random.default_rng(seed)
    logits = rng.normal(0, 1.5, (IMAGES, 3))
    truth = [rng.choice(3, p=shares) for shares in softmax(logits)]
    return np.eye(3, dtype=np.float32)[truth], (sureness * logits).astype(np.float32)


def scored(labels: np.ndarray, logits: np.ndarray, **options) -> Evaluation:
    """As a model file of classes is scored."""
    stand_in = np.zeros((IMAGES, 8, 8), np.uint8)
    stand_in[:, 0, 0], stand_in[:, 0, 1] = np.divmod(np.arange(IMAGES), 256)
    model = ScorableModel(
        CLASSES,
        SPEC,
        lambda images: logits[images[:, 0, 0].astype(int) * 256 + images[:, 0, 1]],
        lambda found: softmax(found).astype(np.float32),
        calibrated=True,
        activation="softmax",
    )
    findings = options.pop("findings", CLASSES)
    return score_model(model, stand_in, labels, PATIENTS, findings, samples=100, **options)


def test_score_of_classes_is_that_of_scikit_learn():
    labels, logits = drawn()
    found = scored(labels, logits)
    truth, said, shares = labels.argmax(axis=1), logits.argmax(axis=1), softmax(logits)
    assert found.classes is not None
    assert found.classes.accuracy.value == pytest.approx((truth == said).mean())
    assert found.classes.balanced_accuracy.value == pytest.approx(balanced_accuracy_score(truth, said))
    for measured in (found.classes.accuracy, found.classes.balanced_accuracy):
        assert measured.low < measured.value < measured.high
    assert found.classes.confusion.sum() == IMAGES
    assert found.classes.confusion[2, 1] == ((truth == 2) & (said == 1)).sum()
    for k, score in enumerate(found.scores):
        assert score.auroc.value == pytest.approx(roc_auc_score(truth == k, shares[:, k]), abs=1e-6)
        alarms, caught, _ = roc_curve(truth == k, shares[:, k], drop_intermediate=False)
        assert score.sensitivity_at.value == pytest.approx(caught[alarms <= 0.05].max())
        assert score.specificity_at.value == pytest.approx(1 - alarms[caught >= 0.95].min())
        assert score.sensitivity_at.low < score.sensitivity_at.high
    as_findings = score_logits(logits, labels, PATIENTS, CLASSES, samples=2)
    assert abs(found.mean_auroc.value - as_findings.mean_auroc.value) > 0.005, "control: independent findings"
    assert (found.decisions.sum(axis=1) == 1).all()
    written = json.loads(json.dumps(found.to_dict()))
    assert written["activation"] == "softmax"
    assert written["classes"]["confusion_matrix"]["counts"] == found.classes.confusion.tolist()


def test_score_finds_its_way_through_another_order_of_classes_and_says_less_of_a_part():
    labels, logits = drawn()
    whole = scored(labels, logits)
    turned = scored(labels[:, [2, 0, 1]], logits, columns=[2, 0, 1], findings=("virus", "normal", "bacteria"))
    assert turned.classes.accuracy == whole.classes.accuracy
    assert turned.scores[0].auroc == whole.scores[2].auroc
    part = scored(labels[:, [2]], logits, columns=[2], findings=("virus",))
    assert part.classes is None
    assert part.scores[0].auroc == whole.scores[2].auroc, "ranked by the share among all classes"


def test_score_refuses_images_without_exactly_one_class_and_leaves_unknown_ones_out():
    labels, logits = drawn()
    unknown = labels.copy()
    unknown[:10] = np.nan
    found = scored(unknown, logits)
    assert found.classes.images == found.classes.confusion.sum() == IMAGES - 10
    none = labels.copy()
    none[:3] = 0
    with pytest.raises(DataError, match="of 300 scored images 3 have none and 0 have several"):
        scored(none, logits)


def test_degradation_and_gate_see_a_change_of_decisions_that_no_auroc_sees():
    """Each class of one half of the images pushed: the order within a class moves little, the predicted class much."""
    labels, logits = drawn()
    reference, worse = scored(labels, logits), scored(labels, logits + np.float32([0, 2.0, 0]))
    degradation = compare(worse, reference)
    truth = labels.argmax(axis=1)
    said, before = (values.argmax(axis=1) for values in (worse.logits, logits))
    assert degradation.accuracy_drop.value == pytest.approx((before == truth).mean() - (said == truth).mean())
    assert degradation.balanced_accuracy_drop.value > 0.05
    assert degradation.decisions_changed == pytest.approx((said != before).mean())
    wide = check_gate(degradation, max_loss=0.05, margin=0.05)
    assert wide["small_loss"], "the AUROC alone would pass"
    assert not wide["balanced_accuracy"]["holds"]
    assert not wide["holds"]
    same = check_gate(compare(reference, reference), max_loss=0.0, margin=0.01)
    assert same["holds"]
    assert same["balanced_accuracy"]["holds"]
    findings = score_logits(logits, labels, PATIENTS, CLASSES, samples=100)
    assert "balanced_accuracy" not in check_gate(compare(findings, findings), max_loss=0, margin=0.01)
    with pytest.raises(DataError, match="probabilities by softmax and by sigmoid"):
        compare(reference, findings)


def test_calibration_finds_the_temperature_and_undoes_class_weights():
    labels, logits = drawn(sureness=3.0)
    plain = choose_class_calibration(labels, logits, np.ones(3))
    assert len(set(plain.slope)) == 1
    assert plain.slope[0] == pytest.approx(1 / 3, rel=0.2)  # 300 images pin it to about a tenth
    assert plain.source("300 dev images", CLASSES) == (
        "temperature scaling (one slope for all classes) fitted on 300 dev images"
    )
    losses = {s: categorical_cross_entropy(labels, s * logits) for s in (0.5 * plain.slope[0], plain.slope[0], 1.0)}
    assert min(losses, key=losses.get) == plain.slope[0]
    weights = np.array([0.5, 1.0, 4.0])
    weighted = choose_class_calibration(labels, logits + 3 * np.log(weights), weights)
    np.testing.assert_allclose(weighted.offset, -np.log(weights))
    assert weighted.source("x", CLASSES).endswith("; class weights of the training loss undone")
    np.testing.assert_allclose(
        undo_class_weights(logits + np.log(weights), weights, "softmax"), softmax(logits), atol=1e-6
    )


@pytest.mark.parametrize("case", ["few", "backwards", "constant", "separated"])
def test_calibration_stays_finite_and_honest(case: str):
    labels, logits = drawn()
    if case == "few":
        labels, logits = labels[:10], logits[:10]
    logits = {"backwards": -logits, "constant": 0 * logits, "separated": 1000 * (2 * labels - 1)}.get(case, logits)
    found = choose_class_calibration(labels, logits, np.ones(3))
    if case == "separated":
        assert 0 < found.slope[0] < 0.01
        assert softmax(found.slope[0] * logits).max() < 1
    else:
        assert (found.slope, set(found.fitted)) == ((1.0,) * 3, {False})
        assert "too few" in found.source("x", CLASSES) or case != "few"


def test_fit_info_of_classes_has_one_slope_no_thresholds_and_needs_all_classes():
    own = read_model(INT8_MODEL).info
    info: ModelInfo = dataclasses.replace(
        own, labels=CLASSES, logit_slope=(1,) * 3, logit_offset=(0,) * 3, thresholds=(0.5,) * 3, reference=None,
        activation="softmax", calibration_source="not fitted",
    )  # fmt: skip
    labels, logits = drawn(sureness=2.0)
    order = [2, 0, 1]
    fitted = fit_info(info, labels[:, order], logits[:, order], np.ones(3), images="300 dev images", columns=order)
    assert fitted == fit_info(info, labels, logits, np.ones(3), images="300 dev images")
    assert fitted.logit_slope[0] == pytest.approx(0.5, rel=0.2)
    assert fitted.thresholds == (0.5,) * 3
    assert fitted.threshold_source.startswith("not used: the classes exclude one another")
    part = fit_info(info, labels[:, :2], logits[:, :2], np.ones(2), images="300 dev images", columns=[0, 1])
    assert part.logit_slope == (1,) * 3
    assert part.calibration_source == "not fitted; 300 dev images do not say which images are virus"


def test_views_of_classes_show_accuracies_and_the_matrix():
    labels, logits = drawn()
    found = scored(labels, logits)
    groups = score_groups(found, {"source": tuple("ab"[number % 2] for number in range(IMAGES))})
    text = render_evaluation(found, groups)
    assert text.startswith("Classes that exclude one another: each image has exactly one.\naccuracy 0.")
    assert "called bacteria" in text
    assert "one-vs-rest AUROC" in text
    assert "threshold" not in text
    columns, rows = flat_columns(found), flat_rows(found, groups)
    assert {len(row) for row in rows} == {len(columns)}
    first = dict(zip(columns, rows[0], strict=True))
    assert first["accuracy"] == found.classes.accuracy.value
    assert first["called_virus"] == found.classes.confusion[0, 2]
    table = list(csv.DictReader(io.StringIO(predictions_csv(found))))
    assert [row["predicted"] for row in table] == [CLASSES[k] for k in logits.argmax(axis=1)]
    assert float(table[5]["probability_virus"]) == pytest.approx(softmax(logits)[5, 2], abs=1e-6)
