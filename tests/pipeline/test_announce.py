"""What is said before a run begins: whether it trains, what that follows, and about how long."""

from __future__ import annotations

import pytest

from cxr_compress.pipeline.announce import tell_way
from cxr_compress.recipe import make_recipe

LABELED = {"dataset": "kermany", "recovery_epochs": 0, "weight_sparsity": 0.0, "qat": "never"}


@pytest.mark.parametrize(
    ("changes", "given", "line"),
    [
        ({"dataset": "images"}, True, "way: training in recover, sparsify, which follows the original model alone, as"),
        ({"dataset": "images", "recovery_epochs": 0}, True, "way: no training, as nothing asks for it"),
        (
            {"dataset": "images", "recovery_epochs": 0, "weight_sparsity": 0.5},
            True,
            "way: training in sparsify, which follows the original model alone",
        ),
        ({"dataset": "images", "recovery_epochs": 0, "qat": "auto"}, True, "int8 is trained only where int8 without"),
        ({"dataset": "images", "recovery_epochs": 0, "qat": "always"}, True, "way: training in qat, which follows"),
        (LABELED, True, "way: no training"),
        ({**LABELED, "distill_weight": 0.5}, False, "way: training in base, which follows the labels and, by 0.5, the"),
        ({**LABELED, "distill_weight": 0.0}, False, "way: training in base, which follows the labels"),
    ],
)
def test_way_names_what_trains_and_what_it_follows(changes, given, line):
    told = tell_way(make_recipe("tiny_chexnet", changes), trains_original=not given)
    assert line in told
    assert "\n" not in told


def test_way_without_labels_names_the_fast_one_and_with_labels_does_not():
    fast = "--recovery_epochs=0 goes without any"
    assert tell_way(make_recipe("mine", {"dataset": "images"}), trains_original=False).endswith(fast)
    assert fast not in tell_way(make_recipe("mine", {"dataset": "kermany"}), trains_original=False)
