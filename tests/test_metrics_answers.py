"""What a model file keeps of the answers to its training images."""

from __future__ import annotations

import json

import numpy as np
import pytest

from cxr_compress.errors import DataError
from cxr_compress.metrics.answers import QUANTILES, AnswerStatistics


@pytest.fixture(scope="module")
def logits():
    return np.random.default_rng(0).normal((1.0, -2.0), (2.0, 0.5), (500, 2))


def test_answers_are_summed_up_as_numpy_does(logits):
    found = AnswerStatistics.of(logits, logits > 0)
    np.testing.assert_allclose(found.mean, logits.mean(axis=0), rtol=1e-4)
    np.testing.assert_allclose(found.std, logits.std(axis=0), rtol=1e-4)
    np.testing.assert_allclose(found.quantiles, np.quantile(logits, QUANTILES, axis=0).T, rtol=1e-4)
    np.testing.assert_allclose(found.above, (logits > 0).mean(axis=0), rtol=1e-4)
    assert (found.features_spread, found.features_rank) == (None, None)


def test_answers_come_back_from_json_and_are_small(logits):
    found = AnswerStatistics.of(logits, logits > 0, logits)
    text = json.dumps(found.to_dict(), allow_nan=False)
    assert AnswerStatistics.from_dict(json.loads(text)) == found
    assert len(text) < 500


@pytest.mark.parametrize(
    "change", [{"mean": [1.0]}, {"std": "x"}, {"images": None}, {"quantiles": [1.0, 2.0]}, {"unknown": 1}]
)
def test_answers_that_are_damaged_are_refused(logits, change):
    fields = AnswerStatistics.of(logits, logits > 0).to_dict()
    with pytest.raises(DataError, match="AnswerStatistics: expected"):
        AnswerStatistics.from_dict({**fields, **change})


def test_answers_that_are_no_numbers_are_refused(logits):
    broken = logits.copy()
    broken[3, 1] = np.inf
    with pytest.raises(DataError, match="1 that are no numbers: look for NaN in the model's weights"):
        AnswerStatistics.of(broken, broken > 0)
    with pytest.raises(DataError, match="expected finite logits and decisions"):
        AnswerStatistics.of(logits, logits[:10] > 0)
