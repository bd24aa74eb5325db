"""A candidate beside its reference: verdicts, decisions at either threshold, and what is marked instead of judged."""

from __future__ import annotations

import dataclasses
import json

import numpy as np
import pytest

from cxr_compress.errors import DataError
from cxr_compress.evaluate import INHERITED, NOT_INFERIOR, OWN, UNDECIDED, WORSE, compare_models
from cxr_compress.evaluate.agreement import BROKEN, HOLDS, TOO_FEW
from cxr_compress.evaluate.limits import Limits, check_limits
from cxr_compress.metrics import auroc, average_precision
from tests.evaluate.compared import FINDINGS, draw_logits, noised, score

IMAGES = np.arange(1200)


def compare(logits=None, thresholds=(0.5, 0.5), margin=0.02, known=None):
    labels, before, patients = draw_logits()
    if known is not None:
        labels = np.where(known, labels, np.float32("nan"))
    reference = score(labels, before, patients)
    candidate = score(labels, before if logits is None else logits(before), patients, thresholds=thresholds)
    return compare_models("small", reference, candidate, IMAGES[: len(labels)], margin=margin)


def test_an_identical_model_is_not_inferior_and_flips_nothing() -> None:
    comparison = compare(margin=1e-4)
    for change in comparison.findings:
        assert change.judged.verdict == NOT_INFERIOR
        assert (change.auroc_drop.value, change.auroc_drop.low, change.auroc_drop.high) == (0, 0, 0)
        for rule in (INHERITED, OWN):
            assert (change.decided[rule].flips, change.decided[rule].new_misses) == (0, ())
    assert comparison.agreement.findings["rare"].kappa.value == 1
    assert check_limits(comparison, (), Limits(0.0, 10.0, 0.0, 1.0)).verdict == HOLDS


def test_noise_in_one_finding_is_named_there_and_nowhere_else() -> None:
    common, rare = compare(lambda z: noised(z, 0, 1.0)).findings
    assert (common.judged.verdict, rare.judged.verdict) == (WORSE, NOT_INFERIOR)
    outcome = check_limits(compare(lambda z: noised(z, 0, 1.0)), (), Limits())
    assert outcome.verdict == BROKEN
    assert outcome.broken == ("common: worse",)


def test_drops_are_those_of_the_metrics() -> None:
    labels, before, _ = draw_logits()
    after = noised(before, 1, 0.5)
    change = compare(lambda z: noised(z, 1, 0.5)).findings[1]
    truth = labels[:, 1]
    assert change.auroc_drop.value == pytest.approx(auroc(truth, before[:, 1]) - auroc(truth, after[:, 1]), abs=1e-12)
    expected = average_precision(truth, before[:, 1]) - average_precision(truth, after[:, 1])
    assert change.ap_drop.value == pytest.approx(expected, abs=1e-12)
    assert change.auroc_drop.low < change.auroc_drop.value < change.auroc_drop.high


def test_new_misses_and_false_alarms_are_counted_at_either_threshold() -> None:
    """The candidate's logits lie lower by one and its threshold follows: only the inherited one misses more."""
    labels, before, _ = draw_logits()
    moved = 1 / (1 + np.exp(1.0))  # sigmoid(-1): where 0.5 has gone
    change = compare(lambda z: z - 1, thresholds=(moved, moved)).findings[0]
    lost = (labels[:, 0] == 1) & (before[:, 0] >= 0) & (before[:, 0] - 1 < 0)
    inherited, own = change.decided[INHERITED], change.decided[OWN]
    assert inherited.new_misses == tuple(np.flatnonzero(lost))
    assert inherited.new_miss_rate.value == pytest.approx(1000 * lost.mean())
    assert inherited.new_miss_rate.low < inherited.new_miss_rate.value < inherited.new_miss_rate.high
    assert inherited.new_false_alarms == ()
    assert inherited.sensitivity_drop.value == pytest.approx(lost.sum() / (labels[:, 0] == 1).sum())
    assert own.flips <= 1  # a logit at the very threshold may round to the other side
    assert change.judged.verdict == NOT_INFERIOR, "control: the order is the same"


def test_flips_within_a_step_are_told_from_others() -> None:
    """Rounded to 32 steps only images next to the threshold flip; noise flips others too."""
    step = np.float32(0.25)
    rounded = compare(lambda z: np.clip(np.round(z / step), -60, 60) * step).findings[0].decided[OWN]
    assert 0 < rounded.flips == rounded.near
    noisy = compare(lambda z: np.clip(np.round(noised(z, 0, 0.8) / step), -60, 60) * step).findings[0].decided[OWN]
    assert noisy.near < noisy.flips
    assert compare(lambda z: noised(z, 0, 0.8)).findings[0].decided[OWN].near is None, "control: a float has no step"


def test_few_images_are_never_good_news_and_say_how_many_more() -> None:
    labels, before, patients = draw_logits(images=90)
    reference, same = score(labels, before, patients), score(labels, before, patients)
    rare = compare_models("same", reference, same, IMAGES[:90], margin=0.01).findings[1]
    assert rare.before.positives < 20
    assert rare.judged.verdict == UNDECIDED
    assert rare.note.startswith("not enough data")
    noisy = compare_models(
        "noisy", reference, score(labels, noised(before, 0, 0.3), patients), IMAGES[:90], margin=0.01
    )
    assert noisy.findings[0].judged.verdict == UNDECIDED
    assert noisy.findings[0].judged.more_positives > 100
    assert check_limits(noisy, (), Limits()).verdict == TOO_FEW


def test_a_reference_at_chance_and_one_that_is_worse_are_marked() -> None:
    labels, before, patients = draw_logits()
    chance = score(labels, np.random.default_rng(3).normal(size=before.shape).astype(np.float32), patients)
    at_chance = compare_models("better", chance, score(labels, before, patients), IMAGES, margin=0.02).findings[0]
    assert at_chance.judged.verdict == UNDECIDED
    assert "no better than chance" in at_chance.note
    worse = score(labels, noised(before, 0, 1.0), patients)
    change = compare_models("better", worse, score(labels, before, patients), IMAGES, margin=0.02).findings[0]
    assert (change.judged.verdict, change.note) == (NOT_INFERIOR, "better than its reference")


@pytest.mark.parametrize("images", [2, 10])
def test_ten_images_of_one_class_give_marked_rows(images) -> None:
    labels, before, patients = draw_logits(images=images)
    labels[:] = 0
    reference = score(labels, before, patients)
    comparison = compare_models("x", reference, score(labels, before, patients), IMAGES[:images], margin=0.01)
    assert [change.judged.verdict for change in comparison.findings] == [UNDECIDED] * 2
    assert "NaN" not in json.dumps(comparison.to_dict(), allow_nan=False)


def test_without_labels_agreement_alone_is_compared() -> None:
    comparison = compare(lambda z: noised(z, 0, 1.0), known=np.zeros((1200, 2), bool))
    assert not comparison.labeled
    assert [change.judged for change in comparison.findings] == [None, None]
    common, rare = (comparison.agreement.findings[name] for name in FINDINGS)
    assert common.spearman.value < 0.9 < rare.spearman.value
    assert check_limits(comparison, (), Limits(max_ece=0.0)).verdict == TOO_FEW
    json.dumps(comparison.to_dict(), allow_nan=False)


def test_each_limit_breaks_alone() -> None:
    comparison = compare(lambda z: noised(z, 0, 0.5), margin=1.0)  # so wide that every verdict is good
    assert check_limits(comparison, (), Limits()).verdict == HOLDS
    for limits, words in (
        (Limits(max_auroc_drop=0.001), "mean AUROC drop"),
        (Limits(max_new_miss_rate=1.0), "new misses"),
        (Limits(max_ece=0.0001), "calibration error"),
    ):
        outcome = check_limits(comparison, (), limits)
        assert outcome.verdict == BROKEN
        assert all(words in text for text in outcome.broken)
    assert check_limits(comparison, (), Limits(0.5, 500.0, 0.5, 0.5)).verdict == HOLDS, "control"


def test_other_resamplings_and_other_images_are_refused() -> None:
    labels, before, patients = draw_logits()
    reference = score(labels, before, patients)
    with pytest.raises(DataError, match="one number of resamplings and one seed"):
        compare_models("x", reference, score(labels, before, patients, samples=100), IMAGES, margin=0.01)
    with pytest.raises(DataError, match="scored on the same images"):
        compare_models("x", reference, score(1 - labels, before, patients), IMAGES, margin=0.01)
    without = dataclasses.replace(reference, drawn=None)
    with pytest.raises(DataError, match="keep what they resampled"):
        compare_models("x", without, reference, IMAGES, margin=0.01)
