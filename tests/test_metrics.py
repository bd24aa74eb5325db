"""AUROC and its intervals against brute force, scikit-learn, and what must not change them."""

from __future__ import annotations

import time

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cxr_compress.errors import DataError
from cxr_compress.metrics import (
    auroc,
    auroc_per_finding,
    auroc_samples,
    average_precision,
    bootstrap_auroc,
    choose_threshold,
    interval,
    mean_auroc,
    sensitivity_at,
    sensitivity_at_samples,
)

# Few distinct scores: ties within and across classes are the rule, as with int8 outputs.
images = st.lists(st.tuples(st.booleans(), st.integers(-4, 4)), min_size=2, max_size=40)


def count_pairs(labels: np.ndarray, scores: np.ndarray) -> float:
    """AUROC by definition: every sick image against every healthy one."""
    pairs = [(s > h) + 0.5 * (s == h) for s in scores[labels == 1] for h in scores[labels == 0]]
    return float(np.mean(pairs)) if pairs else float("nan")


def make_images(seed: int = 0, patients: int = 120, signal: float = 1.0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Labels, scores and patients; a patient has one to four images that resemble one another."""
    rng = np.random.default_rng(seed)
    groups = np.repeat(np.arange(patients), rng.integers(1, 5, patients))
    labels = (rng.uniform(size=patients) < 0.4)[groups].astype(float)
    scores = signal * labels + rng.normal(size=patients)[groups] + 0.3 * rng.normal(size=len(groups))
    return labels, scores, groups


@given(images)
def test_auroc_any_images_equals_the_pair_count(drawn: list[tuple[bool, int]]) -> None:
    labels, scores = np.array(drawn, float).T
    # Both are quotients of whole numbers: equal to the last bits.
    np.testing.assert_allclose(auroc(labels, scores), count_pairs(labels, scores), rtol=1e-12)


@given(images)
def test_average_precision_any_images_equals_scikit_learn(drawn: list[tuple[bool, int]]) -> None:
    from sklearn.metrics import average_precision_score

    labels, scores = np.array(drawn, float).T
    if labels.any():
        np.testing.assert_allclose(average_precision(labels, scores), average_precision_score(labels, scores))
    else:
        assert np.isnan(average_precision(labels, scores))


@given(images, st.sampled_from([0.5, 0.8, 0.95, 1.0]))
def test_sensitivity_at_any_images_is_the_best_of_all_thresholds(drawn: list[tuple[bool, int]], least: float) -> None:
    labels, scores = np.array(drawn, float).T
    sick, healthy = scores[labels == 1], scores[labels == 0]
    if not len(sick) or not len(healthy):
        assert np.isnan(sensitivity_at(labels, scores, specificity=least))
        return
    thresholds = [*np.unique(scores), np.inf]
    kept = [float((sick >= t).mean()) for t in thresholds if np.mean(healthy < t) >= least - 1e-9]
    assert sensitivity_at(labels, scores, specificity=least) == pytest.approx(max(kept), abs=1e-12)
    # The other way round: what is called at this sensitivity.
    spared = [float((healthy < t).mean()) for t in (*thresholds, -np.inf) if np.mean(sick >= t) >= least - 1e-9]
    assert sensitivity_at(1 - labels, -scores, specificity=least) == pytest.approx(max(spared), abs=1e-12)


def test_sensitivity_at_resampled_once_each_is_the_value_and_intervals_hold_it() -> None:
    labels, scores, groups = make_images()
    value = sensitivity_at(labels, scores)
    drawn = sensitivity_at_samples(labels, scores, groups, specificity=0.95, samples=400)[:, 0]
    measured = interval(value, drawn)
    assert measured.low < value < measured.high
    assert sensitivity_at(labels, scores, specificity=0.5) > value + 0.1, "control: another specificity"


@pytest.mark.parametrize("digits", [0, 1, 6])
def test_auroc_continuous_and_tied_scores_equals_scikit_learn(digits: int) -> None:
    from sklearn.metrics import roc_auc_score

    labels, scores, _ = make_images()
    scores = scores.round(digits)
    assert auroc(labels, scores) == pytest.approx(roc_auc_score(labels, scores), abs=1e-12)
    assert auroc(labels, -scores) == pytest.approx(1 - roc_auc_score(labels, scores), abs=1e-12)


@pytest.mark.parametrize("change", [np.exp, lambda s: 3 * s - 7, lambda s: s**3, np.tanh])
def test_auroc_monotone_change_of_scores_changes_nothing(change) -> None:
    labels, scores, _ = make_images()
    assert auroc(labels, change(scores)) == auroc(labels, scores)


def test_auroc_non_monotone_change_of_scores_is_noticed() -> None:
    labels, scores, _ = make_images()
    assert abs(auroc(labels, np.abs(scores)) - auroc(labels, scores)) > 0.05


def test_auroc_one_class_only_is_nan_without_a_warning() -> None:
    assert np.isnan(auroc([1, 1], [0.2, 0.3]))
    assert np.isnan(auroc([0, 0], [0.2, 0.3]))
    assert np.isnan(average_precision([0, 0], [0.2, 0.3]))


def test_auroc_all_scores_equal_is_one_half() -> None:
    assert auroc([0, 1, 0, 1], [0.5] * 4) == 0.5


def test_mean_auroc_undefined_finding_is_left_out() -> None:
    labels = np.array([[0, 1, 0], [1, 1, 1], [1, 1, 0], [0, 1, 1]])
    scores = np.array([[0.1, 0.3, 0.9], [0.8, 0.1, 0.3], [0.7, 0.2, 0.2], [0.2, 0.9, 0.7]])
    per_finding = auroc_per_finding(labels, scores)
    assert per_finding[0] == 1.0
    assert np.isnan(per_finding[1])
    assert mean_auroc(labels, scores) == (per_finding[0] + per_finding[2]) / 2
    assert np.isnan(mean_auroc(labels[:, 1:2], scores[:, 1:2]))


@pytest.mark.parametrize(
    ("labels", "scores", "message"),
    [
        ([0, 1], [0.1, 0.2, 0.3], r"one shape .*got \(2,\) and \(3,\)"),
        ([0, 2], [0.1, 0.2], "labels of 0 or 1"),
        ([0, 0.7, np.nan], [0.1, 0.2, 0.3], "or nan where unknown, got 0.7; soft labels are for training only"),
        ([0, 1], [0.1, np.nan], "scores without nan, got 1 nan"),
        ([], [], "expected labels and scores"),
    ],
)
def test_auroc_bad_input_is_one_clear_line(labels, scores, message) -> None:
    with pytest.raises(DataError, match=message) as caught:
        auroc(labels, scores)
    assert "\n" not in str(caught.value)


def test_auroc_samples_each_set_equals_the_auroc_of_the_images_drawn() -> None:
    labels, scores, groups = make_images(patients=15)
    drawn = auroc_samples(labels, scores, groups, samples=40, seed=3)[:, 0]
    rng = np.random.default_rng(3)
    for value in drawn:
        images_drawn = np.concatenate([np.flatnonzero(groups == p) for p in rng.integers(0, 15, 15)])
        np.testing.assert_allclose(value, count_pairs(labels[images_drawn], scores[images_drawn]), rtol=1e-12)


def test_bootstrap_auroc_order_of_images_changes_nothing() -> None:
    labels, scores, groups = make_images()
    order = np.random.default_rng(1).permutation(len(labels))
    assert bootstrap_auroc(labels, scores, groups) == bootstrap_auroc(labels[order], scores[order], groups[order])
    assert bootstrap_auroc(labels, scores, groups) != bootstrap_auroc(labels, scores, groups, seed=1)


def test_bootstrap_auroc_chunked_draws_equal_draws_at_once(monkeypatch) -> None:
    labels, scores, groups = make_images(patients=30)
    at_once = auroc_samples(labels, scores, groups, samples=50)
    monkeypatch.setattr("cxr_compress.metrics.bootstrap._CHUNK_VALUES", 7 * len(labels))
    np.testing.assert_array_equal(auroc_samples(labels, scores, groups, samples=50), at_once)


def test_bootstrap_auroc_images_of_one_patient_widen_the_interval() -> None:
    """Ten copies of each image add no information: clustered, the interval stays; unclustered it would shrink."""
    labels, scores, _ = make_images(patients=80)
    patients = np.arange(len(labels))
    single = bootstrap_auroc(labels, scores, patients)
    labels10, scores10, patients10 = (np.repeat(values, 10) for values in (labels, scores, patients))
    assert bootstrap_auroc(labels10, scores10, patients10) == single
    naive = bootstrap_auroc(labels10, scores10, np.arange(len(labels10)))
    # Ten times the images shrink a standard error by sqrt(10) = 3.2; a factor of 2 is far from chance.
    assert naive.high - naive.low < (single.high - single.low) / 2


def test_bootstrap_auroc_of_simulated_sets_covers_the_truth_at_the_stated_level() -> None:
    """Scores differ by one deviation between classes: the true AUROC is Phi(1 / sqrt 2) = 0.760."""
    covered = 0
    for seed in range(60):
        rng = np.random.default_rng(seed)
        labels = np.arange(150) % 3 == 0
        found = bootstrap_auroc(labels, labels + rng.normal(size=150), np.arange(150), samples=200)
        covered += found.low <= 0.7602 <= found.high
    # Binomial(60, 0.95): 50 or fewer has a chance of 1e-3; an interval half as wide covers about 68 %, 41 of 60.
    assert covered > 50


def test_bootstrap_auroc_several_findings_is_the_interval_of_their_mean() -> None:
    labels, scores, groups = make_images()
    both_labels, both_scores = np.stack([labels, 1 - labels], 1), np.stack([scores, scores], 1)
    found = bootstrap_auroc(both_labels, both_scores, groups)
    # The second finding is the mirror image of the first: whatever is drawn, the mean is one half.
    assert (found.value, found.low, found.high) == pytest.approx((0.5, 0.5, 0.5), abs=1e-12)


def test_bootstrap_auroc_too_few_positive_patients_gives_no_bounds() -> None:
    labels, scores = np.zeros((60, 2)), np.random.default_rng(0).normal(size=(60, 2))
    labels[0, 0] = labels[:20, 1] = 1
    one = bootstrap_auroc(labels[:, 0], scores[:, 0], np.arange(60))
    assert not np.isnan([one.value, one.low]).any()  # a lone patient is drawn in 63 % of the sets
    hardly = interval(0.7, np.array([0.6, np.nan, np.nan]))
    assert hardly.value == 0.7
    assert np.isnan([hardly.low, hardly.high]).all()
    none = bootstrap_auroc(np.zeros(60), scores[:, 0], np.arange(60))
    assert np.isnan([none.value, none.low, none.high]).all()


def test_bootstrap_auroc_wrong_number_of_patients_is_refused() -> None:
    with pytest.raises(DataError, match="one patient per image, got 3 patients for 2 images"):
        bootstrap_auroc([0, 1], [0.1, 0.2], ["a", "b", "c"])


def test_bootstrap_auroc_thousand_samples_of_624_images_take_under_two_seconds() -> None:
    rng = np.random.default_rng(0)
    labels, scores = np.arange(624) % 3 > 0, rng.normal(size=624)
    started = time.perf_counter()
    bootstrap_auroc(labels, scores, np.arange(624) // 2, samples=1000)
    assert time.perf_counter() - started < 2.0


def test_choose_threshold_separable_scores_lies_half_way_between_the_classes() -> None:
    assert choose_threshold([0, 0, 1, 1], [0.1, 0.2, 0.6, 0.9]) == pytest.approx(0.4)


@given(images)
def test_choose_threshold_any_images_no_other_threshold_is_better(drawn: list[tuple[bool, int]]) -> None:
    labels, codes = np.array(drawn, float).T
    probabilities = (codes + 4) / 8
    if labels.min() == labels.max():
        with pytest.raises(DataError, match="images with and without the finding"):
            choose_threshold(labels, probabilities)
        return

    def gain(threshold: float) -> float:
        called = probabilities >= threshold
        return float(called[labels == 1].mean() - called[labels == 0].mean())

    chosen = choose_threshold(labels, probabilities)
    best = max(gain(t) for t in [0.0, *(np.unique(probabilities))])
    assert gain(chosen) == pytest.approx(best, abs=1e-9)
    # Of equally good thresholds, the most sensitive: none below it is as good.
    assert all(gain(t) < best - 1e-9 for t in np.unique(probabilities) if t < chosen and gain(t) != gain(chosen))


def test_choose_threshold_scores_worse_than_chance_calls_every_image_positive() -> None:
    assert choose_threshold([1, 1, 0, 0], [0.1, 0.2, 0.6, 0.9]) == 0.0


def test_choose_threshold_unknown_rule_is_refused() -> None:
    with pytest.raises(ValueError, match="expected the rule 'youden', got 'f1'"):
        choose_threshold([0, 1], [0.1, 0.9], "f1")


def test_auroc_real_predictions_reproduce_the_published_numbers(cxr_data) -> None:
    """A CheXNet's own predictions on 22,433 images, and the AUROCs its author computed from them."""
    import csv
    import gzip

    from cxr_compress.data import NIH_FINDINGS

    folder = cxr_data / "nih_meta"
    with gzip.open(folder / "Data_Entry_2017_v2020.csv.gz", "rt") as file:
        named = {row["Image Index"]: row["Finding Labels"].split("|") for row in csv.DictReader(file)}
    with gzip.open(folder / "chexnet_preds_22433.csv.gz", "rt") as file:
        rows = list(csv.DictReader(file))
    with (folder / "chexnet_jrzech_aucs.csv").open() as file:
        published = {row["label"]: float(row["auc"]) for row in csv.DictReader(file)}
    labels = np.array([[finding in named[row["Image Index"]] for finding in NIH_FINDINGS] for row in rows])
    scores = np.array([[float(row[f"prob_{finding}"]) for finding in NIH_FINDINGS] for row in rows])
    found = dict(zip(NIH_FINDINGS, auroc_per_finding(labels, scores), strict=True))
    assert set(published) == set(found)
    assert found == pytest.approx(published, abs=1e-12)
    assert round(mean_auroc(labels, scores), 3) == 0.838
    # The control: one image in a hundred labeled the other way is noticed.
    turned = labels ^ (np.random.default_rng(0).uniform(size=labels.shape) < 0.01)
    assert mean_auroc(turned, scores) < 0.83


def test_auroc_of_the_mini_set_agrees_with_scikit_learn_on_a_teachers_predictions(cxr_data) -> None:
    import csv

    from sklearn.metrics import average_precision_score, roc_auc_score

    from cxr_compress.data import NIH_FINDINGS

    folder = cxr_data / "nih_mini"
    with (folder / "labels.csv").open() as file:
        truth = {row["image"]: [float(row[finding]) for finding in NIH_FINDINGS] for row in csv.DictReader(file)}
    with (folder / "chexnet_jrzech_preds_subset.csv").open() as file:
        rows = list(csv.DictReader(file))
    labels = np.array([truth[row["Image Index"]] for row in rows])
    scores = np.array([[float(row[f"prob_{finding}"]) for finding in NIH_FINDINGS] for row in rows])
    assert labels.shape == (844, 14)
    found = auroc_per_finding(labels, scores)
    np.testing.assert_allclose(found, roc_auc_score(labels, scores, average=None), rtol=1e-12)
    assert 0.75 < found.mean() < 0.95  # a real CheXNet on its own held-out images, not a mix-up of columns
    for k in range(14):
        expected = average_precision_score(labels[:, k], scores[:, k])
        assert average_precision(labels[:, k], scores[:, k]) == pytest.approx(expected, abs=1e-12)
