"""Batch norms re-estimated with the original model as reference: nothing is lost where nothing was removed."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from cxr_compress.errors import CompressionError
from cxr_compress.keras2 import keras
from cxr_compress.models import tiny_chexnet
from cxr_compress.structured import (
    Budget,
    analyze_channels,
    measure_batch_norms,
    recalibrate_batch_norm,
    remove_channels,
    score_channels,
    select_channels,
)
from tests import nets


def identity_plan(model):
    """The plan that removes nothing."""
    analysis = analyze_channels(model)
    scores = score_channels(model, analysis)
    return select_channels(analysis, scores, Budget(macs=1.0))


def half_plan(model, criterion="random"):
    analysis = analyze_channels(model)
    scores = score_channels(model, analysis, criterion=criterion)
    return select_channels(analysis, scores, Budget(macs=0.5), scope="local", round_to=1)


def norms(model):
    return {layer.name: layer for layer in model.layers if isinstance(layer, keras.layers.BatchNormalization)}


@pytest.mark.parametrize("build", [nets.dense_block, nets.residual, lambda: nets.enliven(tiny_chexnet(3, (32, 32, 3)))])
def test_recalibrate_with_reference_changes_nothing_where_nothing_was_removed(build):
    """Pitfall 13: at ratio 0 the model must be the one that came in; without the reference it is not."""
    model = build()
    plan = identity_plan(model)
    images = nets.batch(model, images=24)
    pruned, alone = remove_channels(model, plan), remove_channels(model, plan)
    expected = model.predict(images, verbose=0)
    recalibrate_batch_norm(pruned, [images[:10], images[10:]], original=model, plan=plan)
    recalibrate_batch_norm(alone, [images[:10], images[10:]])
    # Both models see the same numbers; what remains is one rounding of float64 to float32.
    np.testing.assert_allclose(pruned.predict(images, verbose=0), expected, rtol=1e-5, atol=1e-5 * expected.std())
    assert np.abs(alone.predict(images, verbose=0) - expected).max() > 1e-2 * expected.std()


def test_recalibrate_with_reference_normalizes_each_channel_as_the_original_model_does():
    model = nets.dense_block()
    plan = half_plan(model)
    images = nets.batch(model, images=32)
    pruned, control = remove_channels(model, plan), remove_channels(model, plan)
    used = recalibrate_batch_norm(pruned, [images], original=model, plan=plan)
    assert used == 32
    original, seen = measure_batch_norms(model, [images]), measure_batch_norms(pruned, [images])
    keep = plan.keep_vector(analyze_channels(model))
    slices = analyze_channels(model).layers

    def normalized(found, path, stay=slice(None)):
        (mean, variance), (held, spread) = found.seen[path], found.held[path]
        scale = np.sqrt(spread[stay] + found.epsilon[path])
        return (mean[stay] - held[stay]) / scale, np.sqrt(variance[stay] + found.epsilon[path]) / scale

    worst = 0.0
    for path in original.seen:
        wanted = normalized(original, path, keep[slices[path].axes[0].sets])
        for got, want in zip(normalized(seen, path), wanted, strict=True):
            # Moving statistics are kept in float32: 1e-7 of values around 1.
            np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-4)
        before = normalized(measure_batch_norms(control, [images]), path)
        worst = max(worst, float(np.abs(before[0] - wanted[0]).max()))
    assert worst > 1e-2


def test_recalibrate_reference_given_is_the_reference_measured():
    model = nets.dense_block()
    plan = half_plan(model)
    images = nets.batch(model, images=16)
    pruned, again = remove_channels(model, plan), remove_channels(model, plan)
    recalibrate_batch_norm(pruned, iter([images]), original=model, plan=plan)
    recalibrate_batch_norm(
        again, iter([images]), original=model, plan=plan, reference=measure_batch_norms(model, [images])
    )
    assert all(np.array_equal(a, b) for a, b in zip(pruned.get_weights(), again.get_weights(), strict=True))


def test_recalibrate_with_reference_leaves_dead_channels_finite_and_the_original_model_alone():
    model = nets.dense_block()
    first = next(layer for layer in model.layers if isinstance(layer, keras.layers.Conv2D))
    weights = first.get_weights()
    weights[0][..., :2] = 0.0
    first.set_weights(weights)
    before = model.get_weights()
    plan = half_plan(model)
    pruned = remove_channels(model, plan)
    recalibrate_batch_norm(pruned, [nets.batch(model)], original=model, plan=plan)
    assert all(np.isfinite(weight).all() for weight in pruned.get_weights())
    assert all(np.array_equal(a, b) for a, b in zip(model.get_weights(), before, strict=True))


def test_recalibrate_with_the_plan_of_another_model_raises_and_changes_nothing():
    model = nets.dense_block()
    plan = half_plan(model)
    pruned = remove_channels(model, plan)
    before = pruned.get_weights()
    name = next(iter(plan.kept))
    wrong = dataclasses.replace(plan, kept={**plan.kept, name: plan.kept[name][:-1]})
    with pytest.raises(CompressionError, match="expected the plan of this model"):
        recalibrate_batch_norm(pruned, [nets.batch(model)], original=model, plan=wrong)
    with pytest.raises(CompressionError, match="expected the model that this one was pruned from"):
        recalibrate_batch_norm(
            pruned, [nets.batch(model)], original=model, plan=plan, reference=measure_batch_norms(nets.sequential(), [])
        )
    assert all(np.array_equal(a, b) for a, b in zip(pruned.get_weights(), before, strict=True))


def test_recalibrate_original_without_plan_raises():
    model = nets.dense_block()
    with pytest.raises(CompressionError, match="expected original and plan together"):
        recalibrate_batch_norm(model, [nets.batch(model)], original=model)
