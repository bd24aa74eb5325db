from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import tensorflow as tf

from cxr_compress.errors import CompressionError, UnsupportedLayerError
from cxr_compress.keras2 import keras
from cxr_compress.lite.freeze import freeze, freeze_signature, static_shape
from tests.lite import nets


def test_freeze_gives_a_static_function_with_the_outputs_of_the_model(chain: Any) -> None:
    frozen = freeze(chain)
    assert frozen.input_shape == (1, 16, 16, 3)
    assert frozen.output_shape == (1, 4)
    assert frozen.last_activation == ""
    images = nets.batch(8)
    got = np.concatenate([np.asarray(frozen.function(tf.constant(image[np.newaxis]))[0]) for image in images])
    expected = chain(images, training=False).numpy()
    # Same kernels, other batch size: a few roundings of sums over at most 3*3*8 products.
    np.testing.assert_allclose(got, expected, atol=1e-5 * np.ptp(expected))
    assert np.abs(got - np.roll(expected, 1, axis=0)).max() > 0.1 * np.ptp(expected)


def test_freeze_uses_inference_mode(chain: Any) -> None:
    image = nets.batch(1)
    training = chain(image, training=True).numpy()
    chain(nets.batch(32), training=True)  # put the statistics back: in training mode they are updated
    frozen = np.asarray(freeze(chain).function(tf.constant(image))[0])
    assert np.abs(frozen - chain(image, training=False).numpy()).max() < 1e-4
    assert np.abs(frozen - training).max() > 1e-2


def test_freeze_leaves_the_model_untouched(chain: Any) -> None:
    before = [weight.copy() for weight in chain.get_weights()]
    freeze(chain)
    assert all(np.array_equal(a, b) for a, b in zip(before, chain.get_weights(), strict=True))


def test_freeze_with_an_open_size_takes_input_size() -> None:
    model = nets.chain(size=None)
    assert freeze(model, input_size=24).input_shape == (1, 24, 24, 3)
    assert freeze(model, 2, input_size=(24, 20)).input_shape == (2, 24, 20, 3)
    with pytest.raises(CompressionError, match=r"leaves its input size open .* give input_size"):
        freeze(model)


def test_freeze_with_a_size_that_contradicts_the_model_fails(chain: Any) -> None:
    assert freeze(chain, input_size=16).input_shape == (1, 16, 16, 3)
    with pytest.raises(CompressionError, match="the model takes 16 x 16 pixels, input_size asks for 24 x 24"):
        freeze(chain, input_size=24)


@pytest.mark.parametrize(("activation", "operator"), [("sigmoid", "Sigmoid"), ("softmax", "Softmax")])
def test_freeze_of_probabilities_names_the_activation(activation: str, operator: str) -> None:
    assert freeze(nets.ends_in(activation)).last_activation == operator


def test_freeze_finds_the_activation_behind_a_reshape() -> None:
    image = keras.Input((8, 8, 1))
    x = keras.layers.Dense(6, activation="sigmoid")(keras.layers.Flatten()(image))
    assert freeze(keras.Model(image, keras.layers.Reshape((2, 3))(x))).last_activation == "Sigmoid"


def test_freeze_of_two_inputs_or_outputs_fails() -> None:
    first, second = keras.Input((8, 8, 1)), keras.Input((8, 8, 1))
    both = keras.Model([first, second], keras.layers.Add()([first, second]))
    with pytest.raises(UnsupportedLayerError, match="expected one input and one output, got 2 and 1"):
        freeze(both)
    with pytest.raises(UnsupportedLayerError, match="expected one input and one output, got 1 and 2"):
        freeze(keras.Model(first, [first, keras.layers.ReLU()(first)]))


def test_freeze_of_an_unbuilt_model_fails() -> None:
    with pytest.raises(UnsupportedLayerError, match="built functional or Sequential Keras model, got Sequential"):
        freeze(keras.Sequential([keras.layers.Dense(2)]))


def test_freeze_of_half_precision_logits_fails() -> None:
    image = keras.Input((8, 8, 1))
    x = keras.layers.Dense(2, dtype="float16")(keras.layers.Flatten()(image))
    with pytest.raises(UnsupportedLayerError, match="expected float32 logits, got float16"):
        freeze(keras.Model(image, x))


@pytest.mark.parametrize("shape", [(None, 10), (None, 8, 8), (None, 8, 8, None), (None, 4, 8, 8, 1)])
def test_static_shape_of_something_that_is_no_image_fails(shape: tuple[int | None, ...]) -> None:
    with pytest.raises(UnsupportedLayerError, match="expected an image input"):
        static_shape(shape)


def test_static_shape_with_a_fixed_other_batch_fails() -> None:
    with pytest.raises(CompressionError, match="open batch or batch 1, got batch 8"):
        static_shape((8, 16, 16, 3))


def test_freeze_signature_with_two_inputs_fails() -> None:
    signature = SimpleNamespace(structured_input_signature=((), {"a": 0, "b": 0}), structured_outputs={"y": 0})
    with pytest.raises(UnsupportedLayerError, match=r"one input and one output, got inputs \['a', 'b'\]"):
        freeze_signature(signature)
