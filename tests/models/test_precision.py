"""Models of mixed and half precision are taken in float32: equal weights, the numbers of Keras in float32."""

from __future__ import annotations

from contextlib import contextmanager

import numpy as np
import pytest
import tensorflow as tf

from cxr_compress.errors import CompressionError
from cxr_compress.keras2 import keras
from cxr_compress.models import load_model
from cxr_compress.models.variants import in_float32
from tests import nets

layers = keras.layers


@contextmanager
def policy(name):
    keras.mixed_precision.set_global_policy(name)
    try:
        yield
    finally:
        keras.mixed_precision.set_global_policy("float32")


def network(precision: str, head: str | None = "float32") -> keras.Model:
    """A nested model, a wrapper, arithmetic and a cast; the same layers whatever the policy."""
    with policy(precision):
        image = keras.Input((8, 8, 3), name="image")
        x = layers.BatchNormalization(name="norm")(layers.Conv2D(4, 3, name="conv")(image))
        inner = keras.Input((6, 6, 4))
        x = keras.Model(inner, layers.Conv2D(4, 1, name="inner")(inner), name="nested")(x)
        x = tf.nn.relu(tf.cast(x, x.dtype)) * 1.5 + 0.25
        x = layers.TimeDistributed(layers.Dense(3, name="each"), name="steps")(x)
        x = layers.Dense(2, dtype=head, name="head")(layers.Flatten(name="flat")(x))
        model = keras.Model(image, x, name="small")
    return nets.enliven(model)


@pytest.fixture(scope="module")
def whole():
    """The network as Keras runs it in float32, its images and its numbers."""
    model = network("float32")
    images = nets.batch(model, images=8)
    return model, images, model(images).numpy()


@pytest.mark.parametrize("suffix", [".keras", ".h5"])
@pytest.mark.parametrize(
    ("name", "head"),
    [("mixed_float16", "float32"), ("mixed_bfloat16", None), ("float16", None), ("float64", None)],
)
@pytest.mark.filterwarnings("ignore:You are saving your model as an HDF5 file")
def test_load_model_of_another_precision_gives_the_numbers_of_float32(whole, tmp_path, name, head, suffix):
    like, images, _ = whole
    model, said = network(name, head), []
    model.save(tmp_path / f"model{suffix}")
    loaded = load_model(tmp_path / f"model{suffix}", said.append)
    assert said == [f"model{suffix}: small was made in {name}: it is taken in float32, with equal weights"]
    assert {layer.dtype_policy.name for layer in loaded._flatten_layers(include_self=False)} == {"float32"}
    assert {str(weight.dtype.name) for weight in loaded.weights} == {"float32"}
    for weight, theirs in zip(loaded.get_weights(), model.get_weights(), strict=True):
        np.testing.assert_array_equal(weight, theirs.astype(np.float32))
    like.set_weights([np.asarray(weight, np.float32) for weight in model.get_weights()])
    expected = like(images).numpy()
    np.testing.assert_array_equal(loaded(images).numpy(), expected)
    assert np.ptp(expected) > 1
    # The controls: other weights, and what the model itself computes but for double precision.
    loaded.set_weights([np.flip(weight) for weight in loaded.get_weights()])
    assert np.abs(loaded(images) - expected).max() > 0.1
    assert name == "float64" or np.abs(model(images).numpy().astype(np.float32) - expected).max() > 1e-4


def test_in_float32_leaves_a_float32_model_and_whole_numbers_alone(whole):
    assert in_float32(whole[0]) == (whole[0], "")
    image = keras.Input((4, 4, 3), dtype="uint8")
    model = keras.Model(image, layers.Rescaling(1 / 255, dtype="mixed_bfloat16")(image))
    changed, _ = in_float32(model)
    assert changed.inputs[0].dtype == tf.uint8
    assert changed.outputs[0].dtype == tf.float32
    assert model.outputs[0].dtype == tf.bfloat16  # it was copied


def test_in_float32_of_a_model_that_cannot_be_built_anew_says_so_in_one_line():
    image = keras.Input((4, 4, 3))
    model = keras.Model(image, layers.Lambda(lambda x: x, dtype="mixed_float16")(image), name="mine")
    with pytest.raises(
        CompressionError, match=r"^mine computes in mixed_float16 and cannot be built in float32: [^\n]*$"
    ):
        in_float32(model)
