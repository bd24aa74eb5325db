"""The parts of the search: spec, next budget, bounds, scores, shortened recipes."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cxr_compress.errors import CompressionError, DataError
from cxr_compress.evaluate.degradation import logit_distance, measure_degradation, training_loss
from cxr_compress.metrics import mean_auroc
from cxr_compress.pipeline.search import CandidateScore, SearchSpec, bounds_of, folder_name, score_on_dev, shortened
from cxr_compress.pipeline.search.spec import keeps, next_budget, rank, worst_of
from cxr_compress.recipe import Recipe
from tests.pipeline.search.judges import ORIGINAL


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"goal": "tiny"}, "expected goal of a search to be one of smallest, best_auroc; got 'tiny'"),
        ({"macs": (0.5, 0.0)}, "expected macs of a search to be shares in"),
        ({"macs": (1.5,)}, "expected macs of a search to be shares in"),
        ({"macs": ()}, "expected the grid of a search to be at least one point"),
        ({"weight_sparsity": (1.0,)}, "expected weight_sparsity of a search"),
        ({"max_auroc_drop": -0.1}, "expected max_auroc_drop of a search to be 0 or more; got -0.1"),
        ({"allowance": 0.5}, "expected allowance of a search to be 1 or more; got 0.5"),
        ({"finalists": 0}, "expected finalists of a search to be 1 or more; got 0"),
        ({"margin": 0.0}, "expected margin of a search to be above 0, or None"),
        ({"goal": "best_auroc"}, "expected max_bytes or max_latency_ms of a search to be given with the goal"),
    ],
)
def test_spec_out_of_range_is_refused(values, said):
    with pytest.raises(CompressionError, match=said.replace("(", r"\(").replace("[", r"\[")):
        SearchSpec(**values)


def test_spec_default_grid_is_geometric_from_a_half_to_a_twentieth():
    grid = SearchSpec().macs_grid
    assert (grid[0], grid[-1], len(grid)) == (0.5, 0.05, 7)
    ratios = [b / a for a, b in pairwise(grid)]
    # Three digits: half a unit of the last is 1 % of the smallest budget.
    assert max(ratios) / min(ratios) < 1.02


@pytest.mark.parametrize(
    ("passed", "expected"),
    [
        ({0.5: True, 0.125: False}, 0.25),
        ({0.5: False, 0.125: True, 0.03125: False}, 0.0625),
        ({0.5: True, 0.25: False, 0.125: False}, 0.354),
        ({0.5: True, 0.25: True}, 0.125),  # a step further down
        ({0.5: False, 0.25: False}, 0.707),  # towards the original model
        ({0.5: True, 0.25: False, 0.354: False, 0.42: False, 0.458: True}, 0.439),
    ],
)
def test_next_budget_lies_between_the_best_that_passes_and_the_next_smaller_that_fails(passed, expected):
    assert next_budget(passed, 0.5) == expected


def test_next_budget_that_was_tried_is_none():
    assert next_budget({0.5: True, 0.4999: False}, 0.5) is None


@given(st.dictionaries(st.floats(0.01, 1.0), st.booleans(), min_size=1, max_size=8), st.floats(0.1, 0.9))
def test_next_budget_is_new_and_below_what_passes(passed, step):
    found = next_budget(passed, step)
    if found is not None:
        best = min([share for share, good in passed.items() if good], default=1.0)
        assert found not in passed
        # Three digits of a number between 0.001 and 1: it may round up by half a per cent.
        assert 0 < found <= best * 1.005


def score(**changes: float | None) -> CandidateScore:
    return replace(ORIGINAL, tflite_bytes=1_000_000, **changes)


@pytest.mark.parametrize(
    ("changes", "spec", "broken"),
    [
        ({"auroc_drop": 0.005}, {}, None),
        ({"auroc_drop": 0.0051}, {}, "AUROC drop"),
        ({"auroc_drop": math.nan}, {}, "AUROC drop"),
        ({"auroc_drop": -0.002}, {"max_auroc_drop": 0.0}, None),
        ({"auroc_drop": 0.0001}, {"max_auroc_drop": 0.0}, "AUROC drop"),
        ({"auroc_drop_high": 0.0099}, {}, None),
        ({"auroc_drop_high": 0.01}, {}, "upper bound of the AUROC drop"),
        ({"auroc_drop_high": None}, {}, "upper bound of the AUROC drop"),
        ({"auroc_drop_high": None}, {"margin": None}, None),
        ({"loss": 0.239}, {}, None),
        ({"loss": 0.241}, {}, "rise of the loss"),
        ({"loss": 0.241}, {"max_loss_rise": None}, None),
        ({"logit_distance": 0.51}, {}, "distance of the logits"),
        ({"logit_distance": 0.51}, {"max_logit_distance": None}, None),
        ({}, {"max_bytes": 999_999}, "bytes"),
        ({}, {"max_bytes": 1_000_000}, None),
        ({"latency_ms": 5.1}, {"max_latency_ms": 5.0}, "milliseconds"),
    ],
)
def test_bounds_after_the_full_recovery(changes, spec, broken):
    bounds = bounds_of(score(**changes), ORIGINAL, SearchSpec(**spec), full=True)
    assert keeps(bounds) == (broken is None)
    if broken is not None:
        assert worst_of(bounds).name == broken


def test_bounds_before_it_count_the_allowance_over_and_ask_for_no_interval():
    cheap = score(auroc_drop=0.0099, auroc_drop_high=0.5, loss=0.279, logit_distance=0.9)
    assert keeps(bounds_of(cheap, ORIGINAL, SearchSpec(), full=False))
    assert not keeps(bounds_of(cheap, ORIGINAL, SearchSpec(), full=True))
    assert not keeps(bounds_of(cheap, ORIGINAL, SearchSpec(allowance=1.0), full=False))


def test_bounds_of_an_original_loss_near_0_leave_room_for_rounding():
    nothing = replace(ORIGINAL, loss=1e-6)
    assert keeps(bounds_of(score(loss=0.004), nothing, SearchSpec(), full=True))
    assert not keeps(bounds_of(score(loss=0.006), nothing, SearchSpec(), full=True))


def test_bounds_with_a_given_size_ask_for_the_size_alone():
    spec = SearchSpec(goal="best_auroc", max_bytes=1_000_000)
    assert keeps(bounds_of(score(auroc_drop=0.3, loss=9.0), ORIGINAL, spec, full=True))


def test_rank_by_auroc_lets_the_loss_decide_where_three_digits_agree():
    low_loss, high_auroc = score(auroc=0.9501, loss=0.1), score(auroc=0.9504, loss=0.2)
    assert rank(low_loss, "best_auroc") < rank(high_auroc, "best_auroc")
    assert rank(score(auroc=0.96, loss=9.0), "best_auroc") < rank(low_loss, "best_auroc")


@pytest.fixture
def images():
    """200 images of 100 patients with two findings, what an original model says of them, and a worse one."""
    rng = np.random.default_rng(0)
    labels = (rng.random((200, 2)) < 0.4).astype(np.float32)
    original = 2 * labels + rng.normal(size=(200, 2))
    patients = tuple(str(number // 2) for number in range(200))
    return labels, original, original + rng.normal(size=(200, 2)), patients


def test_score_on_dev_is_what_the_metrics_say(images):
    labels, original, worse, patients = images
    found = score_on_dev(labels, worse, original, patients, tflite_bytes=10, macs=20, samples=200)
    drop = measure_degradation(labels, worse, original, patients, samples=200).auroc_drop
    assert found.auroc == mean_auroc(labels, worse)
    assert (found.auroc_drop, found.auroc_drop_high) == (drop.value, drop.high)
    assert found.auroc_drop > 0.02
    assert (found.tflite_bytes, found.macs) == (10, 20)


def test_score_on_dev_of_the_original_model_has_no_drop_and_no_distance(images):
    labels, original, _, patients = images
    found = score_on_dev(labels, original, original, patients, tflite_bytes=1, macs=1, samples=50)
    assert (found.auroc_drop, found.auroc_drop_high, found.logit_distance) == (0.0, 0.0, 0.0)


def test_score_on_dev_survives_json(images):
    labels, original, worse, patients = images
    found = score_on_dev(labels, worse, original, patients, tflite_bytes=1, macs=1, samples=50, latency_ms=1.5)
    assert CandidateScore.from_dict(json.loads(json.dumps(found.to_dict()))) == found
    broken = CandidateScore.from_dict(replace(found, loss=math.nan).to_dict())
    assert math.isnan(broken.loss)


def test_score_on_dev_unknown_labels_do_not_count(images):
    labels, original, worse, patients = images
    labels = labels.copy()
    labels[:150, 1] = np.nan
    found = score_on_dev(labels, worse, original, patients, tflite_bytes=1, macs=1, samples=50)
    known = ~np.isnan(labels)
    terms = np.logaddexp(0, -worse) * labels + np.logaddexp(0, worse) * (1 - labels)
    assert found.loss == pytest.approx(terms[known].mean(), rel=1e-12)


def test_score_on_dev_soft_labels_count_in_the_loss_alone(images):
    labels, original, worse, patients = images
    soft, unknown = labels.copy(), labels.copy()
    soft[:50], unknown[:50] = 0.7, np.nan
    found, without = (
        score_on_dev(given, worse, original, patients, tflite_bytes=1, macs=1, samples=50) for given in (soft, unknown)
    )
    assert (found.auroc, found.auroc_drop_high) == (without.auroc, without.auroc_drop_high)
    assert found.loss != without.loss


def test_score_on_dev_with_one_class_says_what_to_do(images):
    _, original, worse, patients = images
    with pytest.raises(DataError, match="no finding has images with and without it among the 200 dev images"):
        score_on_dev(np.zeros((200, 2)), worse, original, patients, tflite_bytes=1, macs=1)


def test_score_on_dev_of_classes_takes_the_shares_and_the_categorical_loss():
    rng = np.random.default_rng(0)
    labels = np.eye(3)[rng.integers(0, 3, 200)]
    original = 2 * labels + rng.normal(size=(200, 3))
    moved = original + rng.normal(0, 3, (200, 1))  # what all logits of an image share is nothing to a softmax
    options = {"tflite_bytes": 1, "macs": 1, "samples": 50}
    patients = [f"p{number}" for number in range(200)]
    found = score_on_dev(labels, moved, original, patients, activation="softmax", **options)
    assert (found.auroc_drop, found.logit_distance) == pytest.approx((0, 0), abs=1e-9)
    shares = np.exp(original) / np.exp(original).sum(axis=1, keepdims=True)
    assert found.auroc == mean_auroc(labels, shares)
    assert found.loss == pytest.approx(-np.log(shares[labels == 1]).mean())
    as_findings = score_on_dev(labels, moved, original, patients, **options)
    assert as_findings.auroc_drop > 0.05, "control"


def test_score_on_dev_of_other_images_is_refused(images):
    labels, original, worse, patients = images
    with pytest.raises(DataError, match=r"expected labels and logits of one shape, got \(200, 2\), \(199, 2\)"):
        score_on_dev(labels, worse[1:], original, patients, tflite_bytes=1, macs=1)


def test_logit_distance_is_in_spreads_of_the_original_model():
    original = np.array([[0.0, 5.0], [2.0, 5.0]])  # spreads 1 and 0; the latter counts as 1
    assert logit_distance(original + np.array([3.0, 0.0]), original) == pytest.approx(math.sqrt(9 / 2))
    assert logit_distance(original * 10, np.asarray(original) * 10) == 0.0


def test_training_loss_equals_that_of_training(images):
    import tensorflow as tf

    from cxr_compress.train import WeightedBce

    labels, _, logits, _ = images
    weights = np.array([3.0, 0.5], np.float32)
    expected = float(tf.reduce_mean(WeightedBce(weights)(labels, logits)))
    # Float32 sums of 400 terms of about 1 against float64.
    assert training_loss(labels.astype(np.float64), logits, weights) == pytest.approx(expected, rel=1e-5)
    assert training_loss(labels.astype(np.float64), logits) != pytest.approx(expected, rel=1e-2)


def test_shortened_recipe_is_the_same_but_for_its_epochs():
    recipe = Recipe().with_values(recovery_epochs=6, sparsity_epochs=4, finetune_epochs=3, qat="always")
    short = shortened(recipe, 1)
    assert (short.recovery.epochs, short.sparsity.epochs, short.sparsity.finetune_epochs) == (1, 1, 1)
    assert short.export.qat.when == "never"
    same = {"recovery_epochs": 6, "sparsity_epochs": 4, "finetune_epochs": 3, "qat": "always"}
    assert short.with_values(**same) == recipe


def test_shortened_recipe_to_nothing_keeps_what_it_cannot_do_without():
    short = shortened(Recipe(), 0)
    assert (short.recovery.epochs, short.sparsity.epochs) == (0, 1)
    assert shortened(Recipe().with_values(from_scratch=True, weight_sparsity=0.0), 0).recovery.epochs == 1


def test_folder_name_differs_for_recipes_that_differ_in_anything():
    base = Recipe()
    names = {folder_name(recipe) for recipe in (base, base.with_values(seed=1), base.with_values(recovery_epochs=5))}
    assert len(names) == 3
    assert all(name.startswith("tiny_chexnet_m50_w50_int8-") for name in names)
