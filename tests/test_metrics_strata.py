"""AUROC inside strata against brute force, and on images whose source gives the label away."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cxr_compress.errors import DataError
from cxr_compress.metrics import (
    auroc,
    count_comparable_images,
    interval,
    stratified_auroc,
    stratified_auroc_samples,
)


@given(st.lists(st.tuples(st.booleans(), st.integers(-4, 4), st.sampled_from("abc")), min_size=2, max_size=40))
def test_stratified_auroc_any_images_counts_pairs_inside_strata(drawn: list[tuple[bool, int, str]]) -> None:
    labels, scores, strata = (np.array(column) for column in zip(*drawn, strict=True))
    won = [
        (s > h) + 0.5 * (s == h)
        for name in "abc"
        for s in scores[labels & (strata == name)]
        for h in scores[~labels & (strata == name)]
    ]
    expected = np.mean(won) if won else np.nan
    np.testing.assert_allclose(stratified_auroc(labels, scores, strata), [expected], rtol=1e-12)
    np.testing.assert_equal(stratified_auroc(labels, scores, ["one"] * len(labels)), [auroc(labels, scores)])


def test_stratified_auroc_of_a_network_that_only_knows_the_source_is_one_half() -> None:
    rng = np.random.default_rng(0)
    source = rng.uniform(size=2000) < 0.5
    labels = (rng.uniform(size=2000) < np.where(source, 0.9, 0.1)).astype(float)
    scores, strata = source + 0.01 * rng.normal(size=2000), np.where(source, "clinic", "ward").tolist()
    assert auroc(labels, scores) > 0.85
    found = interval(
        float(stratified_auroc(labels, scores, strata)[0]),
        stratified_auroc_samples(labels, scores, strata, np.arange(2000), samples=200)[:, 0],
    )
    assert found.low < 0.5 < found.high
    assert found.high - found.low < 0.15
    positives, negatives = count_comparable_images(labels, strata)
    assert (positives[0], negatives[0]) == (labels.sum(), 2000 - labels.sum())
    assert count_comparable_images(labels, ["sick" if label else "well" for label in labels])[0].tolist() == [0]


def test_stratified_auroc_wrong_number_of_strata_is_refused() -> None:
    with pytest.raises(DataError, match="one stratum per image, got 1 strata for 2 images"):
        stratified_auroc([0, 1], [0.1, 0.2], ["a"])
