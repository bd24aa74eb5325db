"""Fresh weights for a network that is there: its own initializers, one seed, nothing inherited."""

from __future__ import annotations

import json

import numpy as np
import pytest

from cxr_compress.errors import UnsupportedLayerError
from cxr_compress.keras2 import keras
from cxr_compress.models import save_model
from cxr_compress.models.variants import reinitialize
from tests import nets, nets_families

layers = keras.layers
FAMILIES = (nets.dense_block, nets.depthwise, nets.nested, nets.shared_layer, nets_families.convnext)


def kernels(model):
    return [weight.numpy() for weight in model.weights if "kernel" in weight.name]


@pytest.mark.parametrize("family", FAMILIES)
def test_reinitialize_same_network_other_weights_of_the_seed_alone(family):
    model = family()
    before = [weight.copy() for weight in model.get_weights()]
    keras.utils.set_random_seed(1)
    fresh = reinitialize(model, 7)
    keras.utils.set_random_seed(2)
    again, other = reinitialize(model, 7), reinitialize(model, 8)
    assert json.dumps(fresh.get_config()) == json.dumps(model.get_config())
    assert [weight.shape for weight in fresh.get_weights()] == [weight.shape for weight in before]
    for one, same in zip(fresh.get_weights(), again.get_weights(), strict=True):
        np.testing.assert_array_equal(one, same)
    for one, differing, old in zip(kernels(fresh), kernels(other), kernels(model), strict=True):
        assert not np.any(one == differing)
        assert not np.any(one == old)
    for now, old in zip(model.get_weights(), before, strict=True):
        np.testing.assert_array_equal(now, old)
    x = nets.batch(model, 8)
    assert np.ptp(np.asarray(fresh(x)), axis=0).max() > 1e-3


def test_reinitialize_draws_as_each_layer_says_and_equal_layers_differ():
    image = keras.Input((8, 8, 16))
    x = layers.Conv2D(16, 3, padding="same", kernel_initializer="he_normal", bias_initializer="ones", name="he")(image)
    x = layers.Conv2D(16, 3, padding="same", kernel_initializer="he_normal", name="he_too")(x)
    x = layers.Conv2D(16, 3, padding="same", kernel_initializer=keras.initializers.RandomNormal(5.0, 0.1, seed=3))(x)
    x = layers.BatchNormalization(gamma_initializer="zeros")(x)
    model = nets.enliven(keras.Model(image, layers.Dense(2)(layers.GlobalAveragePooling2D()(x))))
    fresh = reinitialize(model, 0)
    he, he_too, normal, norm = (layer for layer in fresh.layers if layer.weights and "dense" not in layer.name)
    # 2304 draws: their deviation is known to 1/sqrt(2*2304) = 1.5 %, and three of those are 5 %.
    for layer in (he, he_too):
        assert np.std(layer.kernel) == pytest.approx(np.sqrt(2 / (9 * 16)), rel=0.05)
    assert not np.any(he.kernel.numpy() == he_too.kernel.numpy())
    np.testing.assert_array_equal(he.bias, np.ones(16))
    assert np.mean(normal.kernel) == pytest.approx(5.0, abs=0.01)
    assert not np.any(normal.kernel.numpy() == reinitialize(model, 1).layers[3].kernel.numpy())  # its own seed or not
    for value, start in zip(norm.get_weights(), (0, 0, 0, 1), strict=True):  # gamma, beta, mean, variance
        np.testing.assert_array_equal(value, np.full(16, start, np.float32))
    assert not np.allclose(model.get_layer(norm.name).moving_variance, 1)  # the control: they were others


def test_reinitialize_keeps_what_was_measured_on_images():
    image = keras.Input((8, 8, 3))
    scale = layers.Normalization(name="scale")
    model = keras.Model(image, layers.Dense(2)(layers.GlobalAveragePooling2D()(scale(image))))
    scale.adapt(np.random.default_rng(0).normal(40, 9, (16, 8, 8, 3)).astype(np.float32))
    fresh = reinitialize(model, 0)
    x = np.random.default_rng(1).normal(40, 9, (2, 8, 8, 3)).astype(np.float32)
    np.testing.assert_array_equal(fresh.get_layer("scale")(x), scale(x))
    assert np.abs(scale(x)).max() < 10


def test_reinitialize_sequential_model_saves_as_the_one_it_came_from(tmp_path):
    model = keras.Sequential([layers.Conv2D(4, 3, input_shape=(8, 8, 3)), layers.Flatten(), layers.Dense(2)])
    fresh = reinitialize(model, 0)
    assert type(fresh) is keras.Sequential
    fresh.set_weights(model.get_weights())
    save_model(fresh, tmp_path / "fresh.keras")
    save_model(model, tmp_path / "model.keras")
    assert (tmp_path / "fresh.keras").read_bytes() == (tmp_path / "model.keras").read_bytes()


def test_reinitialize_subclassed_model_is_an_error():
    class Own(keras.Model):
        pass

    with pytest.raises(UnsupportedLayerError, match="built Sequential Keras model, got Own 'own', whose wiring"):
        reinitialize(Own(name="own"), 0)
