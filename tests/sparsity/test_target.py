"""What may be asked for, and the one line for what may not."""

from __future__ import annotations

import json

import pytest

from cxr_compress.errors import CompressionError
from cxr_compress.sparsity import SparsityTarget


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({}, "give either a sparsity or a threshold, got sparsity None and threshold None"),
        ({"sparsity": 0.5, "threshold": 0.1}, "give either a sparsity or a threshold, got sparsity 0.5 and thr.* 0.1"),
        ({"sparsity": 0.0}, "sparsity must be above 0 and below 1, got 0.0"),
        ({"sparsity": 1.0}, "sparsity must be above 0 and below 1, got 1.0"),
        ({"sparsity": float("nan")}, "sparsity must be above 0 and below 1, got nan"),
        ({"threshold": -0.1}, "threshold must be a positive number, got -0.1"),
        ({"threshold": float("inf")}, "threshold must be a positive number, got inf"),
        ({"threshold": 1.0, "threshold_unit": "sigma"}, "threshold_unit must be one of absolute, std, got sigma"),
        ({"threshold": 1.0, "allocation": "global"}, "a threshold decides by itself.* must be layer, got global"),
        ({"threshold": 1.0, "pattern": "block"}, "single weights: pattern must be unstructured, got block"),
        ({"sparsity": 0.5, "allocation": "even"}, "allocation must be one of layer, global, erk, got even"),
        ({"sparsity": 0.5, "schedule": "linear"}, "schedule must be one of constant, polynomial, cubic, got linear"),
        ({"sparsity": 0.5, "pattern": "1:4"}, "pattern must be one of unstructured, 2:4, block, got 1:4"),
        ({"pattern": "2:4", "schedule": "constant", "sparsity": 0.7}, "2:4 zeroes half .* got sparsity 0.7"),
        ({"pattern": "2:4", "schedule": "constant", "threshold": 0.7}, "2:4 zeroes half .* threshold 0.7"),
        ({"pattern": "2:4", "schedule": "constant", "allocation": "erk"}, "allocation must be layer, got erk"),
        ({"pattern": "2:4"}, "cuts 2:4 at the first training step, once: schedule must be constant, got cubic"),
        ({"sparsity": 0.5, "pattern": "block", "block": (1, 1)}, r"make more than one weight.* got \(1, 1\)"),
        ({"sparsity": 0.5, "pattern": "block", "block": (0, 4)}, r"two whole numbers from 1 .* got \(0, 4\)"),
        ({"sparsity": 0.5, "pattern": "block", "block": (4,)}, r"two whole numbers from 1 .* got \(4,\)"),
        ({"sparsity": 0.5, "initial_sparsity": 0.5}, r"initial_sparsity must be in \[0, 0.5\), below the .* got 0.5"),
        ({"sparsity": 0.5, "initial_sparsity": 0.1, "schedule": "constant"}, "initial_sparsity must be 0, got 0.1"),
        ({"sparsity": 0.5, "schedule": "polynomial", "power": 0.0}, "power must be a positive number, got 0.0"),
        ({"sparsity": 0.5, "power": 2.0}, "power belongs to the schedule polynomial.* got power 2 with cubic"),
    ],
)
def test_sparsity_target_contradiction_is_one_clear_line(fields, message):
    with pytest.raises(CompressionError, match=message) as caught:
        SparsityTarget(**fields)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "fields",
    [
        {"sparsity": 0.7, "allocation": "erk", "schedule": "polynomial", "power": 2.0, "initial_sparsity": 0.2},
        {"threshold": 1.5, "threshold_unit": "std", "initial_sparsity": 0.9},
        {"pattern": "2:4", "schedule": "constant"},
        {"pattern": "2:4", "schedule": "constant", "sparsity": 0.5},
        {"sparsity": 0.7, "pattern": "block", "block": (2, 4)},
    ],
)
def test_sparsity_target_json_gives_it_back(fields):
    target = SparsityTarget(**fields)
    assert SparsityTarget.from_dict(json.loads(json.dumps(target.to_dict()))) == target


def test_sparsity_target_from_dict_unknown_field_is_an_error():
    with pytest.raises(CompressionError, match="no field beyond its own, got share"):
        SparsityTarget.from_dict({"share": 0.5})
