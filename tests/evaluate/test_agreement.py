"""Agreement with the original: numbers against their definitions, and what is not defined is never a number."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
from scipy import stats
from sklearn.metrics import cohen_kappa_score

from cxr_compress.errors import DataError
from cxr_compress.evaluate.agreement import BROKEN, HOLDS, TOO_FEW, check_agreement, measure_agreement
from cxr_compress.evaluate.degradation import logit_distance
from cxr_compress.evaluate.score import Answers
from cxr_compress.metrics import Interval

FINDINGS = ("Mass", "Nodule")


def answers(logits, threshold: float = 0.5, activation: str = "sigmoid") -> Answers:
    logits = np.asarray(logits, np.float32)
    if activation == "softmax":
        shares = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
        return Answers(logits, shares, np.eye(logits.shape[1], dtype=bool)[shares.argmax(axis=1)], activation)
    probabilities = 1 / (1 + np.exp(-logits))
    return Answers(logits, probabilities, probabilities >= threshold)


def patients(count: int) -> list[str]:
    return [f"p{number}" for number in range(count)]


@pytest.fixture(scope="module")
def logits():
    return np.random.default_rng(0).normal(0, 2, (300, 2))


def measured(ours, theirs, **options):
    return measure_agreement(answers(ours), answers(theirs), patients(len(ours)), FINDINGS, samples=200, **options)


def test_agreement_of_a_model_with_itself_is_whole_but_no_more_than_the_images_show(logits):
    found = measured(logits, logits)
    assert found.logit_distance == Interval(0, 0, 0)
    assert (found.flips.value, found.flips.low) == (0, 0)
    # Wilson's upper end: near the share (0.0122) at which none of 300 patients would differ once in 40 times.
    assert found.flips.high == pytest.approx(1.96**2 / (300 + 1.96**2), rel=1e-4)
    for finding in found.findings.values():
        assert finding.spearman.value == pytest.approx(1)
        assert finding.kappa.value == pytest.approx(1)


def test_agreement_equals_the_definitions_of_others(logits):
    ours = logits + np.random.default_rng(1).normal(0, 1, logits.shape)
    found = measured(ours, logits)
    assert found.logit_distance.value == pytest.approx(logit_distance(ours.astype(np.float32), logits), rel=1e-6)
    decided = (ours >= 0, logits >= 0)
    assert found.flips.value == pytest.approx((decided[0] != decided[1]).mean())
    for column, finding in enumerate(found.findings.values()):
        expected = stats.spearmanr(ours[:, column], logits[:, column]).statistic
        assert finding.spearman.value == pytest.approx(expected, abs=1e-9)
        kappa = cohen_kappa_score(decided[0][:, column], decided[1][:, column])
        assert finding.kappa.value == pytest.approx(kappa, abs=1e-9)
        assert finding.positives == decided[1][:, column].sum()
        for interval in (finding.spearman, finding.kappa, finding.flips, finding.logit_distance):
            assert interval.low < interval.value < interval.high


def test_agreement_of_unlike_models_is_low(logits):
    """The control: another model's logits of equal spread."""
    found = measured(np.random.default_rng(2).normal(0, 2, logits.shape), logits)
    assert found.logit_distance.value > 1
    assert found.flips.value > 0.4
    assert all(
        abs(finding.spearman.value) < 0.2 and abs(finding.kappa.value) < 0.2 for finding in found.findings.values()
    )
    assert len(found.broken(0.02)) == 2
    assert measured(logits + 0.01, logits).broken(0.02) == []


def test_intervals_resample_patients_and_not_images(logits):
    ours = logits + np.random.default_rng(1).normal(0, 1, logits.shape)
    alone = measured(ours, logits)
    # Each patient thrice: the same numbers, an interval as of a third of the images.
    thrice = [np.repeat(values[:100], 3, axis=0) for values in (ours, logits)]
    owners = [name for name in patients(100) for _ in range(3)]
    together = measure_agreement(answers(thrice[0]), answers(thrice[1]), owners, FINDINGS, samples=200)
    width, narrow = (one.flips.high - one.flips.low for one in (together, alone))
    # The square root of 3, give or take what 200 resamplings leave open.
    assert 1.3 < width / narrow < 2.3


def test_what_is_not_defined_is_null_with_its_reason(logits):
    constant, sure = np.full_like(logits, 0.3), logits + 100
    found = measured(constant, logits).findings["Mass"]
    assert math.isnan(found.spearman.value)
    assert found.reasons["spearman"] == "the compressed model gives every image the same answer"
    one_class = measured(sure, sure).findings["Mass"]
    assert math.isnan(one_class.kappa.value)
    assert one_class.reasons["kappa"] == "the original decides for it on every image"
    assert one_class.reasons["cam"] == "not compared"
    document = json.loads(json.dumps(one_class.to_dict(), allow_nan=False))
    assert document["kappa"] == document["cam"] == {"value": None, "low": None, "high": None}


def test_maps_are_compared_place_by_place(logits):
    random = np.random.default_rng(3)
    maps = random.normal(size=(300, 4, 4, 2))
    same = measured(logits, logits, maps=(2 * maps + 5, maps)).findings["Mass"]
    assert same.cam.value == pytest.approx(1)
    other = measured(logits, logits, maps=(random.normal(size=maps.shape), maps)).findings["Mass"]
    assert abs(other.cam.value) < 0.1
    flat = measured(logits, logits, maps=(np.ones_like(maps), maps)).findings["Mass"]
    assert math.isnan(flat.cam.value)
    assert "flat" in flat.reasons["cam"]


def test_classes_that_exclude_one_another_flip_once_an_image(logits):
    wide = np.random.default_rng(4).normal(size=(300, 3))
    changed = wide.copy()
    changed[:30] = np.roll(changed[:30], 1, axis=1)
    pair = (answers(values, activation="softmax") for values in (changed, wide))
    found = measure_agreement(*pair, patients(300), ("a", "b", "c"), samples=100)
    assert found.flips.value == pytest.approx(0.1)
    shifted = answers(wide + 7, activation="softmax")  # a softmax does not see what all logits have in common
    again = measure_agreement(shifted, answers(wide, activation="softmax"), patients(300), ("a", "b", "c"), samples=100)
    assert again.logit_distance.value == pytest.approx(0, abs=1e-6)


def test_answers_that_are_no_numbers_or_of_other_images_are_refused(logits):
    broken = logits.copy()
    broken[0, 0] = np.nan
    with pytest.raises(DataError, match="the compressed model gives 1 logits that are no numbers"):
        measured(broken, logits)
    with pytest.raises(DataError, match="run both on the same images"):
        measure_agreement(answers(logits[:10]), answers(logits), patients(300), FINDINGS)
    with pytest.raises(DataError, match="1 or more"):
        measure_agreement(answers(logits[:0]), answers(logits[:0]), [], FINDINGS)


def gate(ours, theirs, **limits):
    limits = {"max_flips": 0.05, "max_logit_distance": 0.5, **limits}
    return check_agreement(measured(ours, theirs), **limits)


def test_gate_holds_breaks_or_says_that_the_images_are_too_few(logits):
    near = logits + np.random.default_rng(1).normal(0, 0.02, logits.shape)
    assert gate(near, logits)["verdict"] == HOLDS
    assert gate(logits + 3, logits)["verdict"] == BROKEN
    far = np.random.default_rng(2).normal(0, 2, logits.shape)
    assert gate(far, logits, max_logit_distance=9.0)["verdict"] == BROKEN
    assert gate(logits[:72], logits[:72])["verdict"] == TOO_FEW
    # One of 80 decisions changes, and 40 patients cannot show that fewer than 5 in a hundred would.
    few = gate(near[:40], logits[:40])
    assert few["verdict"] == TOO_FEW
    assert not few["holds"]
    assert few["patients_needed"] == 73
    assert few["flips"]["high"] > few["flips"]["max"] == 0.05
    # So few that even a wide limit is not shown.
    assert gate(near[:8], logits[:8], max_flips=0.9)["verdict"] == TOO_FEW
    assert gate(logits[:73], logits[:73])["verdict"] == HOLDS


def test_gate_does_not_hold_on_images_that_lack_what_the_original_knows(logits):
    found = gate(logits, logits, lacking=["none is above the threshold"])
    assert found["verdict"] == TOO_FEW
    assert gate(logits, logits)["verdict"] == HOLDS, "control"
    assert gate(logits + 3, logits, lacking=["none is above the threshold"])["verdict"] == BROKEN


def test_gate_never_takes_what_is_no_number_for_agreement(logits):
    constant = np.full_like(logits, 1.0)
    assert gate(constant, logits)["verdict"] == BROKEN
    assert gate(logits, constant)["verdict"] == BROKEN
