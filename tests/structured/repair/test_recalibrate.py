"""Batch norms re-estimated with the uncut model as reference: nothing is lost where nothing was removed."""

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
    thin, alone = remove_channels(model, plan), remove_channels(model, plan)
    expected = model.predict(images, verbose=0)
    recalibrate_batch_norm(thin, [images[:10], images[10:]], uncut=model, plan=plan)
    recalibrate_batch_norm(alone, [images[:10], images[10:]])
    # Both models see the same numbers; what remains is one rounding of float64 to float32.
    np.testing.assert_allclose(thin.predict(images, verbose=0), expected, rtol=1e-5, atol=1e-5 * expected.std())
    assert np.abs(alone.predict(images, verbose=0) - expected).max() > 1e-2 * expected.std()


def test_recalibrate_with_reference_normalises_each_channel_as_the_uncut_model_does():
    model = nets.dense_block()
    plan = half_plan(model)
    images = nets.batch(model, images=32)
    thin, control = remove_channels(model, plan), remove_channels(model, plan)
    used = recalibrate_batch_norm(thin, [images], uncut=model, plan=plan)
    assert used == 32
    uncut, seen = measure_batch_norms(model, [images]), measure_batch_norms(thin, [images])
    keep = plan.keep_vector(analyze_channels(model))
    slices = analyze_channels(model).layers

    def normalised(found, path, stay=slice(None)):
        (mean, variance), (held, spread) = found.seen[path], found.held[path]
        scale = np.sqrt(spread[stay] + found.epsilon[path])
        return (mean[stay] - held[stay]) / scale, np.sqrt(variance[stay] + found.epsilon[path]) / scale

    worst = 0.0
    for path in uncut.seen:
        wanted = normalised(uncut, path, keep[slices[path].axes[0].units])
        for got, want in zip(normalised(seen, path), wanted, strict=True):
            # Moving statistics are kept in float32: 1e-7 of values around 1.
            np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-4)
        before = normalised(measure_batch_norms(control, [images]), path)
        worst = max(worst, float(np.abs(before[0] - wanted[0]).max()))
    assert worst > 1e-2


def test_recalibrate_reference_given_is_the_reference_measured():
    model = nets.dense_block()
    plan = half_plan(model)
    images = nets.batch(model, images=16)
    thin, again = remove_channels(model, plan), remove_channels(model, plan)
    recalibrate_batch_norm(thin, iter([images]), uncut=model, plan=plan)
    recalibrate_batch_norm(
        again, iter([images]), uncut=model, plan=plan, reference=measure_batch_norms(model, [images])
    )
    assert all(np.array_equal(a, b) for a, b in zip(thin.get_weights(), again.get_weights(), strict=True))


def test_recalibrate_with_reference_leaves_dead_channels_finite_and_the_uncut_model_alone():
    model = nets.dense_block()
    first = next(layer for layer in model.layers if isinstance(layer, keras.layers.Conv2D))
    weights = first.get_weights()
    weights[0][..., :2] = 0.0
    first.set_weights(weights)
    before = model.get_weights()
    plan = half_plan(model)
    thin = remove_channels(model, plan)
    recalibrate_batch_norm(thin, [nets.batch(model)], uncut=model, plan=plan)
    assert all(np.isfinite(weight).all() for weight in thin.get_weights())
    assert all(np.array_equal(a, b) for a, b in zip(model.get_weights(), before, strict=True))


def test_recalibrate_with_the_plan_of_another_model_raises_and_changes_nothing():
    model = nets.dense_block()
    plan = half_plan(model)
    thin = remove_channels(model, plan)
    before = thin.get_weights()
    name = next(iter(plan.kept))
    wrong = dataclasses.replace(plan, kept={**plan.kept, name: plan.kept[name][:-1]})
    with pytest.raises(CompressionError, match="expected the plan of this model"):
        recalibrate_batch_norm(thin, [nets.batch(model)], uncut=model, plan=wrong)
    with pytest.raises(CompressionError, match="expected the model that this one was thinned from"):
        recalibrate_batch_norm(
            thin, [nets.batch(model)], uncut=model, plan=plan, reference=measure_batch_norms(nets.sequential(), [])
        )
    assert all(np.array_equal(a, b) for a, b in zip(thin.get_weights(), before, strict=True))


def test_recalibrate_uncut_without_plan_raises():
    model = nets.dense_block()
    with pytest.raises(CompressionError, match="expected uncut and plan together"):
        recalibrate_batch_norm(model, [nets.batch(model)], uncut=model)
