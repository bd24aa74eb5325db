"""What decides a training: lists per size, and what is refused before anything slow begins."""

from __future__ import annotations

import json

import pytest

from cxr_compress.errors import CompressionError
from cxr_compress.train.config import TrainingPlan


def test_plan_one_value_counts_for_every_size():
    plan = TrainingPlan("chexnet", "kermany", sizes=(64, 112, 160), epochs=(3, 2, 1), learning_rates=(1e-3,))
    assert plan.learning_rates == (1e-3, 1e-3, 1e-3)
    assert [plan.config(stage).epochs for stage in range(3)] == [3, 2, 1]


def test_plan_config_carries_every_shared_choice():
    plan = TrainingPlan("m", "csv", loss="focal", ema_decay=0.9, patience=2, label_smoothing=0.1, seed=7)
    config = plan.config(0)
    assert (config.loss, config.ema_decay, config.patience, config.label_smoothing, config.seed) == (
        "focal",
        0.9,
        2,
        0.1,
        7,
    )


def test_plan_is_json_ready():
    assert json.loads(json.dumps(TrainingPlan("m", "csv").to_dict()))["ranges"]["mirror"] is False


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"sizes": ()}, "sizes must be one or more image sizes"),
        ({"sizes": (64, 96), "epochs": (1, 2, 3)}, r"epochs must hold one value, or one per size \(2\), got 3"),
        ({"pos_weight": "twice"}, "pos_weight must be one of balanced, sqrt, none, got 'twice'"),
        ({"precision": "half"}, "precision must be one of auto"),
        ({"loss": "hinge"}, "loss must be one of bce, focal"),
        ({"label_smoothing": 1.0}, r"label_smoothing must be in \[0, 1\)"),
        ({"ema_decay": 1.0}, r"ema_decay must be in \[0, 1\)"),
        ({"patience": -1}, "patience must be 0 or more"),
        ({"epochs": (0,)}, "epochs must be at least 1"),
        ({"learning_rates": (-1.0,)}, "learning_rate must be a positive number"),
    ],
)
def test_plan_value_out_of_range_is_an_error(fields, message):
    with pytest.raises(CompressionError, match=message):
        TrainingPlan("chexnet", "kermany", **fields)
