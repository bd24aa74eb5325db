"""The pruned model against the oracle, with the control that must fail, and what a delivered model must keep."""

from __future__ import annotations

import numpy as np
import pytest

from cxr_compress.errors import DataError
from cxr_compress.keras2 import keras
from cxr_compress.models import tiny_chexnet
from cxr_compress.structured import (
    Budget,
    analyze_channels,
    measure_cost,
    recalibrate_batch_norm,
    remove_channels,
    score_channels,
    select_channels,
)
from tests import nets
from tests.structured.oracle import other_channels, parity

# Pruned and zeroed model add the same float32 products in another order: some hundred terms of 2**-24 relative error
# each give about 1e-5 of the output's spread. The control swaps whole channels, which moves it by 0.01 or far more.
PARITY = 1e-5
CONTROL = 1e-2


def random_plan(model, macs=0.5, round_to=1, seed=2):
    analysis = analyze_channels(model)
    # Random scores, so that the channels that stay differ from group to group: a wrong offset cannot hide.
    scores = score_channels(model, analysis, criterion="random", seed=seed)
    return select_channels(analysis, scores, Budget(macs=macs), round_to=round_to)


NETS = {**nets.SMALL_NETS, "tiny_chexnet": lambda: nets.enliven(tiny_chexnet(num_classes=3, input_shape=(32, 32, 3)))}


@pytest.mark.parametrize("build", NETS.values(), ids=NETS)
def test_remove_channels_equals_the_oracle_and_other_channels_do_not(build):
    model = build()
    found = parity(model, random_plan(model), nets.batch(model, images=8))
    assert found.error < PARITY
    assert found.control > CONTROL
    assert found.input_sensitivity > 1e-3
    assert found.removal_effect > CONTROL


@pytest.mark.densenet
def test_remove_channels_densenet121_equals_the_oracle_and_other_channels_do_not(densenet121):
    plan = random_plan(densenet121, round_to=8)
    found = parity(densenet121, plan, nets.batch(densenet121, images=2))
    assert found.error < PARITY
    assert found.control > CONTROL
    assert found.input_sensitivity > 1e-3
    assert plan.after.macs <= 0.5 * 2_833_152_000


@pytest.mark.parametrize("build", NETS.values(), ids=NETS)
def test_remove_channels_costs_exactly_what_the_plan_predicts(build):
    model = build()
    plan = random_plan(model)
    assert measure_cost(remove_channels(model, plan)) == plan.after


def test_remove_channels_empty_plan_is_bit_equal():
    model = nets.dense_block()
    plan = random_plan(model, macs=1.0)
    pruned = remove_channels(model, plan)
    images = nets.batch(model)
    assert plan.kept == {}
    assert all(np.array_equal(a, b) for a, b in zip(pruned.get_weights(), model.get_weights(), strict=True))
    assert np.array_equal(pruned(images), model(images))


def test_remove_channels_leaves_the_model_untouched():
    model = nets.residual()
    before = [weight.copy() for weight in model.get_weights()]
    config = model.get_config()
    remove_channels(model, random_plan(model))
    assert all(np.array_equal(a, b) for a, b in zip(model.get_weights(), before, strict=True))
    assert model.get_config() == config


def test_remove_channels_keeps_names_flags_and_regularizers():
    image = keras.Input((8, 8, 3))
    conv = keras.layers.Conv2D(8, 3, kernel_regularizer=keras.regularizers.L2(0.01), name="a")
    x = keras.layers.Dense(2, name="logits")(keras.layers.GlobalAveragePooling2D(name="gap")(conv(image)))
    model = nets.enliven(keras.Model(image, x))
    conv.trainable = False
    pruned = remove_channels(model, random_plan(model))
    assert [layer.name for layer in pruned.layers] == [layer.name for layer in model.layers]
    assert pruned.get_layer("a").filters == 4
    assert pruned.get_layer("a").trainable is False
    assert float(pruned.get_layer("a").kernel_regularizer.l2) == pytest.approx(0.01)


def test_remove_channels_result_loads_without_this_package(tmp_path):
    model = nets.dense_block()
    pruned = remove_channels(model, random_plan(model))
    pruned.save(tmp_path / "pruned.keras")
    again = keras.models.load_model(tmp_path / "pruned.keras", compile=False)
    images = nets.batch(model)
    assert np.array_equal(again(images), pruned(images))


def test_remove_channels_plan_of_other_channels_gives_another_model():
    """The control's own control: `other_channels` keeps the widths and changes the channels of every group."""
    model = nets.dense_block()
    analysis = analyze_channels(model)
    plan = random_plan(model)
    control = other_channels(plan, analysis)
    assert {name: len(kept) for name, kept in control.kept.items()} == {
        name: len(kept) for name, kept in plan.kept.items()
    }
    assert all(control.kept[name] != kept for name, kept in plan.kept.items())


def test_recalibrate_batch_norm_restores_the_statistics_of_the_data():
    model = nets.dense_block()
    images = nets.batch(model, images=32)
    norm = next(layer for layer in model.layers if isinstance(layer, keras.layers.BatchNormalization))
    features = keras.Model(model.input, norm.input)(images).numpy()
    used = recalibrate_batch_norm(model, [images[:8], images[8:32]])
    assert used == 32
    # float32 sums over 32 * 8 * 8 positions: 1e-4 is far above rounding and far below the statistics themselves.
    np.testing.assert_allclose(norm.moving_mean, features.mean(axis=(0, 1, 2)), atol=1e-4)
    np.testing.assert_allclose(norm.moving_variance, features.var(axis=(0, 1, 2)), rtol=1e-3)


def test_recalibrate_batch_norm_changes_nothing_but_moving_statistics():
    model = nets.dense_block()
    before = model.get_weights()
    recalibrate_batch_norm(model, [nets.batch(model)])
    changed = {
        weight.name.split("/")[-1]
        for weight, old, new in zip(model.weights, before, model.get_weights(), strict=True)
        if not np.array_equal(old, new)
    }
    assert changed == {"moving_mean:0", "moving_variance:0"}


def test_recalibrate_batch_norm_without_images_raises():
    with pytest.raises(DataError, match="expected at least one batch of images, got none"):
        recalibrate_batch_norm(nets.dense_block(), [])


def test_recalibrate_batch_norm_model_without_batch_norm_reads_nothing():
    def never():
        raise AssertionError("a batch was read")
        yield

    assert recalibrate_batch_norm(nets.sequential(), never()) == 0
