from __future__ import annotations

from cxr_compress.pipeline.stages.prune_weights import sparsity_target
from cxr_compress.recipe import make_recipe


def test_sparsity_target_carries_every_choice_of_the_recipe():
    recipe = make_recipe(
        "tiny_chexnet",
        {
            "weight_sparsity": 0.75,
            "sparsity_allocation": "erk",
            "sparsity_schedule": "polynomial",
            "sparsity_power": 2.0,
            "initial_sparsity": 0.25,
            "sparsity_pattern": "block",
            "sparsity_block": [2, 8],
        },
    )
    target = sparsity_target(recipe)
    assert (target.sparsity, target.threshold, target.allocation) == (0.75, None, "erk")
    assert (target.schedule, target.power, target.initial_sparsity) == ("polynomial", 2.0, 0.25)
    assert (target.pattern, target.block) == ("block", (2, 8))


def test_sparsity_target_threshold_replaces_the_share():
    changes = {"weight_sparsity": 0.0, "weight_threshold": 0.5, "threshold_unit": "std"}
    target = sparsity_target(make_recipe("tiny_chexnet", changes))
    assert (target.sparsity, target.threshold, target.threshold_unit) == (None, 0.5, "std")
