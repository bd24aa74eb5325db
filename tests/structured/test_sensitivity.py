"""Sensitivity: ignoring is removing, measurements go on where they stopped, and selection spares what hurts."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cxr_compress.errors import BudgetError, CompressionError, DataError
from cxr_compress.keras2 import keras
from cxr_compress.structured import (
    Budget,
    ChannelPlan,
    Curve,
    Sensitivity,
    analyze_channels,
    measure_sensitivity,
    remove_channels,
    remove_iteratively,
    score_channels,
    select_channels,
    sensitivity,
)
from cxr_compress.structured.sensitivity import model_hash
from tests import nets, nets_families


def prepared(build):
    model = build()
    analysis = analyze_channels(model)
    return model, analysis, score_channels(model, analysis)


def two_inputs():
    """left(3) -+-> concat -> a(4) -> GAP -> logits(2)
    right(3) ---+
    """
    left, right = keras.Input((8, 8, 3), name="left"), keras.Input((8, 8, 3), name="right")
    x = keras.layers.Conv2D(4, 1, name="a")(keras.layers.Concatenate()([left, right]))
    x = keras.layers.Dense(2, name="logits")(keras.layers.GlobalAveragePooling2D()(x))
    return nets.enliven(keras.Model([left, right], x))


def plan_without(analysis, name: str, gone) -> ChannelPlan:
    keep = np.ones(analysis.set_count, dtype=np.bool_)
    keep[analysis.groups[name].start + np.asarray(gone)] = False
    return ChannelPlan.of(analysis, keep, {})


def outputs(model, images) -> np.ndarray:
    found = model(images, training=False)
    parts = found if isinstance(found, list) else [found]
    return np.concatenate([np.asarray(part, dtype=np.float64).reshape(len(images), -1) for part in parts], axis=1)


def change(model, pruned, images) -> float:
    """The definition, written out: variance of the change over variance, by output."""
    before, after = outputs(model, images), outputs(pruned, images)
    return float(((after - before).var(axis=0) / before.var(axis=0)).mean())


@pytest.fixture
def passes(monkeypatch):
    """How many passes over the images were made."""
    made = []
    run = sensitivity._Probe._run
    monkeypatch.setattr(sensitivity._Probe, "_run", lambda self, forward: (made.append(1), run(self, forward))[1])
    return made


@pytest.mark.parametrize("build", [nets.chain, nets.residual, nets.dense_block, nets.depthwise, nets.two_outputs])
def test_sensitivity_error_is_that_of_the_rebuilt_pruned_model(build):
    model, analysis, scores = prepared(build)
    images = nets.batch(model, 16)
    found = measure_sensitivity(model, analysis, scores, [images[:10], images[10:]], fractions=(0.5,))
    assert (found.measure, found.images) == ("output", 16)
    for name, curve in found.curves.items():
        order = np.argsort(scores[name], kind="stable")
        count = round(0.5 * curve.channels)
        assert curve.fractions == (count / curve.channels,)
        pruned = remove_channels(model, plan_without(analysis, name, order[:count]))
        # float32 outputs of about 1 differ by about 1e-7 between kernels of other widths.
        assert curve.errors[0] == pytest.approx(change(model, pruned, images), rel=1e-5)
        # Control: the strongest channels instead of the weakest give another error.
        other = remove_channels(model, plan_without(analysis, name, order[-count:]))
        assert change(model, other, images) != pytest.approx(curve.errors[0], rel=1e-3)


def test_sensitivity_fractions_are_whole_channels_each_once():
    model, analysis, scores = prepared(nets.dense_block)
    found = measure_sensitivity(model, analysis, scores, [nets.batch(model)], fractions=(0.5, 0.01, 0.05, 0.99))
    # g1 has 4 channels: 0.01 and 0.05 are one of them at least, 0.99 is all but one at most.
    assert found.curves["g1"].fractions == (0.25, 0.5, 0.75)


def test_sensitivity_of_dead_channels_is_0_and_of_living_ones_is_not():
    model, analysis, scores = prepared(nets.chain)
    norm = model.layers[2]
    gamma, beta, mean, variance = norm.get_weights()
    gamma[[1, 3, 4, 6]], beta[[1, 3, 4, 6]] = 0, -1
    norm.set_weights([gamma, beta, mean, variance])
    scores["a"] = np.isin(np.arange(8), [0, 2, 5, 7]).astype(np.float64)
    curve = measure_sensitivity(model, analysis, scores, [nets.batch(model, 8)]).curves["a"]
    assert curve.errors[:2] == (0.0, 0.0)
    assert curve.errors[2] > 1e-3


def test_sensitivity_with_a_loss_is_its_rise():
    model, analysis, scores = prepared(nets.residual)
    images, labels = nets.batch(model, 12), np.random.default_rng(3).normal(size=(12, 3)).astype(np.float32)
    loss = keras.losses.MeanSquaredError()
    # Unequal batches: the mean is over images, not over batches.
    found = measure_sensitivity(
        model, analysis, scores, [(images[:8], labels[:8]), (images[8:], labels[8:])], loss=loss, fractions=(0.5,)
    )
    order = np.argsort(scores["a"], kind="stable")
    pruned = remove_channels(model, plan_without(analysis, "a", order[:8]))
    rise = np.mean((outputs(pruned, images) - labels) ** 2) - np.mean((outputs(model, images) - labels) ** 2)
    assert found.measure == "loss"
    # Float32 losses of about 1, summed in another order: some 1e-7 each.
    assert found.curves["a"].errors[0] == pytest.approx(rise, abs=2e-6)
    assert abs(rise) > 1e-3, "control: there is something to measure"


def test_sensitivity_over_a_layer_normalization_is_measured_on_a_rebuilt_model():
    model = nets_families.convnext()
    analysis = analyze_channels(model, allow_inexact=True)
    scores = score_channels(model, analysis)
    images = nets.batch(model, 16)
    found = measure_sensitivity(model, analysis, scores, [images], fractions=(0.5,))
    name = next(iter(found.curves))
    order = np.argsort(scores[name], kind="stable")
    gone = order[: round(found.curves[name].fractions[0] * len(order))]
    pruned = remove_channels(model, plan_without(analysis, name, gone))
    assert found.curves[name].errors[0] == pytest.approx(change(model, pruned, images), rel=1e-5)


@pytest.mark.parametrize("stopped", [False, True])
def test_sensitivity_leaves_the_model_bit_identical(stopped, monkeypatch):
    model, analysis, scores = prepared(nets.dense_block)
    before = model_hash(model)
    if stopped:
        monkeypatch.setattr(sensitivity._Probe, "_run", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            measure_sensitivity(model, analysis, scores, [nets.batch(model)])
    else:
        measure_sensitivity(model, analysis, scores, [nets.batch(model)])
    assert model_hash(model) == before


def test_sensitivity_points_do_not_leak_into_each_other():
    """Each error is that of its group alone, whatever was measured before it."""
    model, analysis, scores = prepared(nets.knot)
    images = nets.batch(model, 8)
    whole = measure_sensitivity(model, analysis, scores, [images])
    reverse = replace(analysis, groups=dict(reversed(analysis.groups.items())))
    assert measure_sensitivity(model, reverse, scores, [images]).curves == whole.curves


class StoppedError(Exception):
    pass


def stop_after(monkeypatch, groups: int) -> None:
    add, done = sensitivity.CurveCache.add, []

    def stopping(self, *arguments):
        if len(done) == groups:
            raise StoppedError
        done.append(1)
        add(self, *arguments)

    monkeypatch.setattr(sensitivity.CurveCache, "add", stopping)


def test_sensitivity_interrupted_goes_on_with_the_groups_that_are_left(tmp_path, monkeypatch, passes):
    model, analysis, scores = prepared(nets.dense_block)
    images, cache, log = [nets.batch(model, 8)], tmp_path / "sensitivity.json", []
    whole = measure_sensitivity(model, analysis, scores, images)
    groups = len(analysis.groups)
    assert len(passes) == 1 + 3 * groups
    with monkeypatch.context() as patch:
        stop_after(patch, 2)
        with pytest.raises(StoppedError):
            measure_sensitivity(model, analysis, scores, images, cache=cache)
    passes.clear()
    again = measure_sensitivity(model, analysis, scores, images, cache=cache, progress=log.append)
    assert len(passes) == 1 + 3 * (groups - 2)
    assert log == ["sensitivity: 2 groups measured before, kept"]
    assert again == whole
    passes.clear()
    assert measure_sensitivity(model, analysis, scores, images, cache=cache) == whole
    assert not passes, "a finished measurement needs no pass at all"
    assert Sensitivity.from_json(cache.read_text()) == whole


@pytest.mark.parametrize("changed", ["weights", "images", "order", "fractions", "loss"])
def test_sensitivity_cache_of_something_else_is_measured_anew(changed, tmp_path, passes):
    model, analysis, scores = prepared(nets.dense_block)
    images, labels = nets.batch(model, 8), np.ones((8, 3), np.float32)
    cache, log = tmp_path / "sensitivity.json", []
    first = measure_sensitivity(model, analysis, scores, [images], cache=cache)
    options = {"fractions": (0.5,)} if changed == "fractions" else {}
    if changed == "weights":
        model.layers[-1].set_weights([weight * 2 for weight in model.layers[-1].get_weights()])
    if changed == "images":
        images = images + 0.5
    if changed == "order":
        scores = {name: -values for name, values in scores.items()}
    if changed == "loss":
        options["loss"] = keras.losses.MeanSquaredError()
    passes.clear()
    batches = [(images, labels)] if changed == "loss" else [images]
    second = measure_sensitivity(model, analysis, scores, batches, cache=cache, progress=log.append, **options)
    assert second.key != first.key
    assert len(passes) > len(analysis.groups)
    assert "of another model, data or order of channels; starting anew" in log[0]
    assert Sensitivity.from_json(cache.read_text()) == second


def test_sensitivity_scores_of_the_same_order_keep_the_cache(tmp_path, passes):
    """Only the order of channels decides what is ignored: the last bits of a score must not cost minutes."""
    model, analysis, scores = prepared(nets.dense_block)
    cache = tmp_path / "sensitivity.json"
    measure_sensitivity(model, analysis, scores, [nets.batch(model)], cache=cache)
    passes.clear()
    nearly = {name: values * (1 + 1e-9) for name, values in scores.items()}
    measure_sensitivity(model, analysis, nearly, [nets.batch(model)], cache=cache)
    assert not passes


@pytest.mark.parametrize("text", ["", "{", "[]", '{"format": 9}', '{"format": 1, "key": "", "groups": {"a": 1}}'])
def test_sensitivity_damaged_cache_is_one_line(text, tmp_path):
    model, analysis, scores = prepared(nets.chain)
    cache = tmp_path / "sensitivity.json"
    cache.write_text(text)
    with pytest.raises(CompressionError, match=r"expected sensitivity .*; delete the file to measure anew") as caught:
        measure_sensitivity(model, analysis, scores, [nets.batch(model)], cache=cache)
    assert "\n" not in str(caught.value)


def test_sensitivity_wrong_input_raises():
    model, analysis, scores = prepared(nets.chain)
    images = nets.batch(model)
    with pytest.raises(CompressionError, match=r"fractions of channels to ignore in \(0, 1\); got \(0.5, 1.0\)"):
        measure_sensitivity(model, analysis, scores, [images], fractions=(0.5, 1.0))
    with pytest.raises(CompressionError, match="8 scores without NaN for group 'a'"):
        measure_sensitivity(model, analysis, {**scores, "a": np.ones(3)}, [images])
    with pytest.raises(DataError, match="sensitivity needs images"):
        measure_sensitivity(model, analysis, scores, [])
    with pytest.raises(DataError, match="the same output for all images: expected two or more that differ"):
        measure_sensitivity(model, analysis, scores, [images[:1]])
    with pytest.raises(DataError, match=r"sensitivity: expected batches of \(images, labels\)"):
        measure_sensitivity(model, analysis, scores, [images], loss=keras.losses.MeanSquaredError())
    twins = prepared(two_inputs)
    with pytest.raises(CompressionError, match="a model with one input to run on batches, got 2 inputs"):
        measure_sensitivity(*twins, [images])
    model.layers[-1].bias.assign([np.nan] * 3)
    with pytest.raises(DataError, match="the model gives NaN or infinity"):
        measure_sensitivity(model, analysis, scores, [images])


def made_up(analysis, errors) -> Sensitivity:
    """A stand-in measurement: by group, the error of losing half of it."""
    curves = {name: Curve(group.channels, (0.5,), (errors.get(name, 1.0),)) for name, group in analysis.groups.items()}
    return Sensitivity("key", "output", 1, curves)


def test_select_sensitivity_takes_the_group_that_hurts_least_first():
    _, analysis, scores = prepared(nets.dense_block)
    measured = made_up(analysis, {"g1": 1e-6})
    options = {"scope": "sensitivity", "sensitivity": measured, "round_to": 1}
    plan = select_channels(analysis, scores, Budget(params=analysis.baseline.params - 1), **options)
    assert list(plan.kept) == ["g1"]
    # Within a group the scores decide.
    weakest = set(np.argsort(scores["g1"], kind="stable")[: 4 - len(plan.kept["g1"])].tolist())
    assert set(plan.kept["g1"]) == set(range(4)) - weakest


def test_select_sensitivity_counts_what_a_step_saves():
    """Equal errors: the group whose channels are dearest goes first, in the currency of the budget."""
    _, analysis, scores = prepared(nets.chain)
    plan = select_channels(
        analysis,
        scores,
        Budget(params=analysis.baseline.params - 1),
        scope="sensitivity",
        sensitivity=made_up(analysis, {}),
        round_to=1,
    )

    def saved(name):
        keep = np.ones(analysis.set_count, dtype=np.bool_)
        group = analysis.groups[name]
        keep[group.start : group.start + group.channels // 2] = False
        return analysis.baseline.params - analysis.cost_model.cost(keep).params

    assert list(plan.kept) == [max(analysis.groups, key=saved)]


@given(
    seed=st.integers(0, 30),
    macs=st.floats(0.3, 1.0),
    round_to=st.sampled_from([1, 2]),
    min_channels=st.integers(1, 3),
    max_removed=st.floats(0.6, 0.9),
)
def test_select_sensitivity_any_budget_holds_with_every_floor(seed, macs, round_to, min_channels, max_removed):
    rng = np.random.default_rng(seed)
    analysis = DENSE
    scores = {name: rng.random(group.channels) for name, group in analysis.groups.items()}
    measured = made_up(analysis, {name: float(rng.random()) for name in analysis.groups})
    try:
        plan = select_channels(
            analysis,
            scores,
            Budget(macs=macs),
            scope="sensitivity",
            sensitivity=measured,
            round_to=round_to,
            min_channels=min_channels,
            max_removed_fraction=max_removed,
            overrides={"g1": 0.0},
        )
    except BudgetError:
        return  # floors that forbid the budget; test_select has that path
    assert plan.after.macs <= macs * analysis.baseline.macs
    assert "g1" not in plan.kept
    for name, kept in plan.kept.items():
        channels = analysis.groups[name].channels
        assert len(kept) % round_to == 0
        assert len(kept) >= max(min_channels, channels * (1 - max_removed) - 1e-6)
        lost = set(range(channels)) - set(kept)
        assert max(scores[name][list(lost)]) <= min(scores[name][list(kept)])


DENSE = analyze_channels(nets.dense_block())


def test_select_sensitivity_missing_or_of_another_model_raises():
    _, analysis, scores = prepared(nets.dense_block)
    with pytest.raises(CompressionError, match='scope "sensitivity" needs sensitivity='):
        select_channels(analysis, scores, Budget(macs=0.5), scope="sensitivity")
    other = made_up(analyze_channels(nets.two_outputs()), {})
    with pytest.raises(CompressionError, match="6 channels of group 'stem', got 8 channels: measure it on this model"):
        select_channels(analysis, scores, Budget(macs=0.5), scope="sensitivity", sensitivity=other)


def test_remove_iteratively_measures_sensitivity_anew_in_every_step():
    model = nets_families.convnext()
    images, measured = [nets.batch(model, 8)], []

    def measure(pruned, analysis, scores, step):
        measured.append((step, measure_sensitivity(pruned, analysis, scores, images, fractions=(0.5,))))
        return measured[-1][1]

    options = {"scope": "sensitivity", "round_to": 1, "max_removed_fraction": 0.75}
    # Only with allow_inexact may the widest group of a ConvNeXt go, so it must reach every step.
    pruned, plan, plans = remove_iteratively(
        model, Budget(macs=0.4), score_channels, steps=2, measure=measure, allow_inexact=True, **options
    )
    assert [step for step, _ in measured] == [1, 2]
    assert measured[0][1].key != measured[1][1].key
    assert plan.allow_inexact
    assert "stem/conv" in plan.kept
    assert pruned.count_params() == plan.after.params == plans[-1].after.params


def test_sensitivity_json_shows_one_group_a_line():
    found = made_up(DENSE, {"g1": 0.25})
    text = found.to_json()
    assert '  "g1": {"channels": 4, "fractions": [0.5], "errors": [0.25]}' in text
    assert Sensitivity.from_json(text) == found
    assert list(json.loads(text)["groups"]) == list(DENSE.groups)


def test_curve_rises_is_linear_between_points_and_steep_behind_the_last():
    curve = Curve(8, (0.25, 0.5, 0.75), (0.2, 0.1, 0.4))
    np.testing.assert_allclose(curve.error_at([0, 0.125, 0.25, 0.5, 0.625, 0.75]), [0, 0.1, 0.2, 0.2, 0.3, 0.4])
    # The last slope is 0.2 in a quarter, the mean one 0.4 in three quarters.
    np.testing.assert_allclose(curve.error_at([1.0]), [0.6])
    flat = Curve(8, (0.25, 0.5), (1.0, 1.0))
    np.testing.assert_allclose(flat.error_at([1.0]), [2.0], err_msg="a destroyed output does not make the rest free")
    assert Curve(1, (), ()).error_at([0.0]).tolist() == [0.0]
