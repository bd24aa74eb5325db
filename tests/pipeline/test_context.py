"""What every training of a run has in common comes from the recipe."""

from __future__ import annotations

import dataclasses

import pytest

from cxr_compress.pipeline.context import OF_TRAINING, RunContext
from cxr_compress.recipe import AugmentRanges, make_recipe


def config(**changes):
    recipe = make_recipe("tiny_chexnet", changes)
    return RunContext(recipe, None, "images", None, print).config(3, 1e-4, ema_decay=0.5)


def test_config_takes_what_no_training_of_a_run_differs_in_from_the_recipe():
    found = config(
        batch_size=8, weight_decay=0.01, label_smoothing=0.05, seed=4, augment_gamma=0.2, augment_mirror=True
    )
    assert (found.epochs, found.learning_rate, found.ema_decay) == (3, 1e-4, 0.5)
    assert (found.batch_size, found.weight_decay, found.label_smoothing, found.seed) == (8, 0.01, 0.05, 4)
    assert found.ranges == dataclasses.replace(AugmentRanges(), gamma=0.2, mirror=True)
    assert config().ranges == AugmentRanges()


@pytest.mark.parametrize(
    "changes", [{"augment_shift": 0.0}, {"weight_decay": 0.1}, {"label_smoothing": 0.1}, {"batch_size": 8}]
)
def test_inputs_of_a_stage_that_trains_change_with_each(changes):
    before, after = (
        RunContext(make_recipe("tiny_chexnet", values), None, "images", None, print).inputs(OF_TRAINING)
        for values in ({}, changes)
    )
    assert before != after
