"""What removal delivers: a plain model that a user saves and loads, and an input model that it never touched."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from cxr_compress.keras2 import keras
from cxr_compress.models.keras_graph import layers_by_path
from cxr_compress.structured import (
    Budget,
    ChannelPlan,
    analyze_channels,
    remove_channels,
    score_channels,
    select_channels,
)
from tests import nets
from tests.nets_families import FAMILIES

layers = keras.layers

# Keys of a layer's config that count channels, or hold shapes that do; all others must stay as they were.
_SIZES = {"filters", "units", "groups", "projection_dim", "batch_input_shape", "target_shape"}


def particular() -> keras.Model:
    """image -> a(8), float16, L2 -> BN frozen -> b(6), no bias, max-norm, he_normal -> GAP -> logits(3), L1"""
    half = keras.mixed_precision.Policy("mixed_float16")
    image = keras.Input((8, 8, 3), name="image")
    x = layers.Conv2D(8, 3, kernel_regularizer=keras.regularizers.L2(0.01), dtype=half, name="a")(image)
    x = layers.BatchNormalization(trainable=False, momentum=0.7, name="norm")(x)
    options = {"kernel_constraint": keras.constraints.MaxNorm(3), "kernel_initializer": "he_normal"}
    x = layers.GlobalAveragePooling2D(name="gap")(layers.Conv2D(6, 3, use_bias=False, name="b", **options)(x))
    logits = layers.Dense(3, activity_regularizer=keras.regularizers.L1(0.1), name="logits")
    return nets.enliven(keras.Model(image, logits(x), name="particular"))


BUILDERS = {
    "dense_block": nets.dense_block,
    "residual": nets.residual,
    "nested": nets.nested,
    "mobilenet_v3": FAMILIES["mobilenet_v3"],
    "particular": particular,
}


def half_plan(model: keras.Model, macs: float = 0.5) -> ChannelPlan:
    analysis = analyze_channels(model)
    scores = score_channels(model, analysis, criterion="random", seed=3)
    return select_channels(analysis, scores, Budget(macs=macs), round_to=1)


@pytest.fixture(scope="module", params=BUILDERS.values(), ids=BUILDERS)
def removal(request):
    model = request.param()
    plan = half_plan(model)
    return model, plan, remove_channels(model, plan)


def save(model: keras.Model, folder: Path, kind: str) -> str:
    """Save as a user does; Keras warns that HDF5 is old."""
    path = str(folder / f"pruned{kind}")
    if kind == ".h5":
        with pytest.warns(UserWarning, match="HDF5"):
            model.save(path)
    else:
        model.save(path)
    return path


def outputs(model: keras.Model) -> tuple[np.ndarray, np.ndarray]:
    """Outputs for seeded images, and for others: what the outputs must not be equal to."""
    return tuple(np.asarray(model(nets.batch(model, seed=seed), training=False), np.float32) for seed in (1, 2))


@pytest.mark.parametrize("kind", [".keras", ".h5", ""], ids=["keras", "h5", "saved_model"])
def test_result_saves_and_loads_without_custom_objects(removal, kind, tmp_path):
    """Pitfall 8: every format that Keras 2 writes, loaded with nothing but its path."""
    _, _, pruned = removal
    again = keras.models.load_model(save(pruned, tmp_path, kind))
    expected, others = outputs(pruned)
    got, _ = outputs(again)
    if kind:
        assert np.array_equal(got, expected)
    else:
        # The function is traced and may add in another order: some hundred float32 terms of 2**-24 relative error.
        np.testing.assert_allclose(got, expected, atol=1e-6 * max(1, float(np.abs(expected).max())))
    assert np.abs(got - others).max() > 1e-2


def test_result_loads_in_a_process_that_knows_nothing_of_this_package(tmp_path):
    """Pitfall 8: a colleague has tf_keras and the file."""
    model = nets.nested()
    pruned = remove_channels(model, half_plan(model))
    paths = [save(pruned, tmp_path, kind) for kind in (".keras", ".h5", "")]
    np.save(tmp_path / "images.npy", nets.batch(model))
    code = """
import sys
import numpy as np
sys.modules["cxr_compress"] = None  # an import of it fails
import tf_keras
images = np.load(sys.argv[1])
outputs = [np.asarray(tf_keras.models.load_model(path)(images, training=False)) for path in sys.argv[3:]]
np.save(sys.argv[2], np.stack(outputs))
"""
    command = [sys.executable, "-c", code, str(tmp_path / "images.npy"), str(tmp_path / "outputs.npy"), *paths]
    subprocess.run(command, check=True, capture_output=True, text=True)
    found = np.load(tmp_path / "outputs.npy")
    expected, others = outputs(pruned)
    assert np.array_equal(found[0], expected)
    assert np.array_equal(found[1], expected)
    np.testing.assert_allclose(found[2], expected, atol=1e-6)
    assert np.abs(found - others).max() > 1e-2


def test_result_differs_from_the_model_in_widths_alone(removal):
    """Pitfall 8: names, trainable flags, regularizers, constraints, dtype policies and all else of every layer."""
    model, plan, pruned = removal
    before, after = layers_by_path(model), layers_by_path(pruned)
    assert list(after) == list(before)
    assert (pruned.name, type(pruned)) == (model.name, type(model))
    for path, layer in after.items():
        assert type(layer) is type(before[path])
        assert layer.trainable == before[path].trainable
        assert layer.dtype_policy.name == before[path].dtype_policy.name
        old, new = before[path].get_config(), layer.get_config()
        assert {key for key in old if old[key] != new[key]} <= _SIZES
        assert list(old) == list(new)
        assert [weight.trainable for weight in layer.weights] == [weight.trainable for weight in before[path].weights]
    for name, kept in plan.kept.items():
        width = after[name].get_config().get("filters") or after[name].get_config().get("units")
        assert width == len(kept) < plan.channels[name]


def test_result_keeps_what_is_particular_about_single_layers():
    """The control of the test above: these really are set, and survive saving too."""
    model = particular()
    pruned = remove_channels(model, half_plan(model))
    a, b = pruned.get_layer("a"), pruned.get_layer("b")
    assert (a.dtype_policy.name, b.dtype_policy.name) == ("mixed_float16", "float32")
    assert (a.compute_dtype, a.kernel.dtype) == ("float16", "float32")
    assert float(a.kernel_regularizer.l2) == pytest.approx(0.01)
    assert isinstance(b.kernel_constraint, keras.constraints.MaxNorm)
    assert float(pruned.get_layer("logits").activity_regularizer.l1) == pytest.approx(0.1)
    norm = pruned.get_layer("norm")
    assert (norm.trainable, norm.momentum, norm.trainable_weights) == (False, 0.7, [])


def test_result_is_not_compiled_and_can_be(removal):
    model, _, pruned = removal
    images, labels = nets.batch(model), np.zeros((4, 3), np.float32)
    with pytest.raises(RuntimeError, match="must compile your model"):
        pruned.evaluate(images, labels, verbose=0)


def test_result_of_a_compiled_model_is_not_compiled():
    model = nets.residual()
    model.compile("sgd", "mse")
    pruned = remove_channels(model, half_plan(model))
    with pytest.raises(RuntimeError, match="must compile your model"):
        pruned.evaluate(nets.batch(model), np.zeros((4, 3), np.float32), verbose=0)
    # The model itself still is.
    assert model.evaluate(nets.batch(model), np.zeros((4, 3), np.float32), verbose=0) >= 0


@pytest.mark.parametrize("build", BUILDERS.values(), ids=BUILDERS)
def test_model_is_bit_identical_after_analysis_scores_plan_and_removal(build):
    """Pitfall 8: weights, config, trainable flags and outputs of the input model; nothing is shared with the result."""
    model = build()
    before = [weight.copy() for weight in model.get_weights()]
    config, flags = model.get_config(), [layer.trainable for layer in layers_by_path(model).values()]
    expected, _ = outputs(model)
    batches = [(nets.batch(model, images=8), np.zeros((8, 3), np.float32))]
    analysis = analyze_channels(model)
    for criterion in ("l1", "geometric_median", "taylor", "lasso"):
        score_channels(model, analysis, criterion=criterion, batches=batches, loss=keras.losses.mean_squared_error)
    pruned = remove_channels(model, half_plan(model))
    pruned.set_weights([np.full_like(weight, 7) for weight in pruned.get_weights()])
    pruned.trainable = False
    assert all(np.array_equal(a, b) for a, b in zip(model.get_weights(), before, strict=True))
    assert model.get_config() == config
    assert [layer.trainable for layer in layers_by_path(model).values()] == flags
    assert np.array_equal(outputs(model)[0], expected)


@pytest.mark.parametrize("build", BUILDERS.values(), ids=BUILDERS)
def test_removal_of_nothing_is_bit_equal(build):
    """Pitfall 13: at a removal ratio of 0 the model is the baseline, so its accuracy is."""
    model = build()
    plan = half_plan(model, macs=1.0)
    assert plan.kept == {}
    same = remove_channels(model, plan)
    assert all(np.array_equal(a, b) for a, b in zip(same.get_weights(), model.get_weights(), strict=True))
    assert np.array_equal(outputs(same)[0], outputs(model)[0])
    # Control: a plan that removes something changes both.
    pruned = remove_channels(model, half_plan(model, macs=0.9))
    assert pruned.count_params() < model.count_params()
    assert not np.array_equal(outputs(pruned)[0], outputs(model)[0])
