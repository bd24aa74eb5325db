from __future__ import annotations

import json

import numpy as np
import pytest

from cxr_compress.data import PHANTOM_FINDINGS, write_phantom
from cxr_compress.keras2 import keras
from cxr_compress.models.files import load_model, save_model
from cxr_compress.models.original import read_original
from cxr_compress.pipeline.context import RunContext
from cxr_compress.pipeline.data import load_run_data
from cxr_compress.pipeline.run import run_stages, take_folder
from cxr_compress.pipeline.stages import stages_before
from cxr_compress.pipeline.stages.prune_weights import sparsity_target
from cxr_compress.pipeline.stages.quantize import Quantize
from cxr_compress.pipeline.store import StageStore
from cxr_compress.recipe import make_recipe
from tests.nets import conv_bn, enliven


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


@pytest.mark.parametrize("from_scratch", [False, True])
def test_recovery_counts_its_start_but_for_random_weights(tmp_path, from_scratch):
    image = keras.Input((32, 32, 3))
    x = conv_bn(conv_bn(keras.layers.AveragePooling2D(4)(image), 16, "a"), 16, "b")
    logits = keras.layers.Dense(len(PHANTOM_FINDINGS), name="logits")(keras.layers.GlobalAveragePooling2D()(x))
    model = enliven(keras.Model(image, logits))
    norm = next(layer for layer in model.layers if isinstance(layer, keras.layers.BatchNormalization))
    save_model(model, tmp_path / "small.keras")
    changes = {"dataset": "phantom", "force": True, "match": "position", "preset": "imagenet_torch", "input_size": 32}
    epochs = {"recovery_epochs": 2, "sparsity_epochs": 1, "finetune_epochs": 1, "recovery_learning_rate": 1e-2}
    following = {"distill_weight": 1.0, "distill_loss": "logits", "recovery_batch_norm": "hold"}
    recipe = make_recipe("tiny_chexnet", {**changes, **epochs, **following, "from_scratch": from_scratch})
    write_phantom(tmp_path / "phantom", n_train=120, n_test=30, size=64)
    data = load_run_data(recipe, tmp_path / "phantom", lambda split, done, total: None)
    original = read_original(tmp_path / "small.keras", preset="imagenet_torch")
    run = RunContext(recipe, data, "digest", StageStore(tmp_path / "run", print), print, original=original)
    take_folder(run)
    run_stages(run, stages_before(Quantize))
    made = {
        stage: json.loads((tmp_path / "run" / "manifests" / f"{stage}.json").read_text())
        for stage in ("recover", "finetune")
    }
    first = int(from_scratch)
    assert [entry["epoch"] for entry in made["recover"]["facts"]["history"]] == [0, 1, 2][first:]
    assert [entry["epoch"] for entry in made["finetune"]["facts"]["history"]] == [0, 1]
    repaired, recovered, sparse = (
        load_model(tmp_path / "run" / name).get_layer(norm.name).moving_mean.numpy()
        for name in ("repaired.keras", "recovered.keras", "sparse.keras")
    )
    assert np.array_equal(repaired, recovered) != from_scratch, "statistics of a good start are held"
    assert np.array_equal(recovered, sparse)
    for stage in made.values():
        assert stage["inputs"]["recipe"]["recovery_batch_norm"] == recipe.recovery.batch_norm
        history = stage["facts"]["history"]
        objectives = {entry["epoch"]: entry["dev_objective"] for entry in history}
        assert objectives[stage["facts"]["best_epoch"]] == min(objectives.values())
