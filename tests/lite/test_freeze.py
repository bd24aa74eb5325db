from __future__ import annotations

import re
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import tensorflow as tf
from hypothesis import given
from hypothesis import strategies as st

from cxr_compress.errors import CompressionError, UnsupportedLayerError
from cxr_compress.keras2 import keras
from cxr_compress.lite import convert
from cxr_compress.lite.freeze import freeze, freeze_signature, static_shape
from tests.lite import nets
from tests.lite.conftest import run


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


def test_freeze_of_half_precision_gives_float32_logits_of_the_same_weights() -> None:
    image = keras.Input((8, 8, 1))
    x = keras.layers.Dense(2, dtype="float16")(keras.layers.Flatten()(image))
    model = keras.Model(image, x, name="half")
    frozen = freeze(model)
    assert frozen.notes == ("half was made in float16: it is taken in float32, with equal weights",)
    images = nets.batch(1, 8, channels=1)
    kernel = model.get_weights()[0].astype(np.float32)
    (got,) = frozen.function(tf.constant(images))
    assert got.dtype == tf.float32
    np.testing.assert_allclose(got, images.reshape(1, -1) @ kernel, rtol=1e-5, atol=1e-6)
    assert np.abs(got - images.reshape(1, -1) @ np.flip(kernel)).max() > 0.01


def test_freeze_of_logits_that_are_no_numbers_fails() -> None:
    image = keras.Input((8, 8, 1))
    model = keras.Model(image, tf.math.argmax(keras.layers.Flatten()(image), axis=-1))
    with pytest.raises(UnsupportedLayerError, match="expected float32 logits, got int64"):
        freeze(model)


def test_freeze_of_a_layer_that_draws_numbers_says_so_in_one_line() -> None:
    image = keras.Input((8, 8, 1))
    model = keras.Model(image, keras.layers.Flatten()(keras.layers.RandomCrop(4, 4)(image)))
    with pytest.raises(
        UnsupportedLayerError, match=r"^the model cannot be frozen: [^\n]*RandomCrop: keras\.layers\.Cent"
    ):
        freeze(model)


@pytest.mark.parametrize(
    ("shape", "said"),
    [
        ((None, 10), "takes a vector"),
        ((None, 8, 8), "images without a channel axis"),
        ((None, 8, 8, None), "its channels are left open"),
        ((None, 4, 8, 8, 1), "several images or a volume"),
        ((None, 3, 224, 224), "the model is channels-first: put keras.layers.Permute((3, 1, 2))"),
        ((1, 1, 28, 28), "the model is channels-first"),
        ((None, 3, None, None), "the model is channels-first"),
    ],
)
def test_static_shape_of_something_that_is_no_image_fails(shape: tuple[int | None, ...], said: str) -> None:
    """ultralytics and onnx2tf users meet this: a channels-first model was squeezed to images 3 pixels high."""
    with pytest.raises(UnsupportedLayerError, match=rf"^expected an image input [^\n]*{re.escape(said)}[^\n]*$"):
        static_shape(shape)


@given(
    side=st.one_of(st.none(), st.integers(4, 600)),
    other=st.one_of(st.none(), st.integers(4, 600)),
    channels=st.sampled_from((1, 3)),
)
def test_static_shape_takes_images_in_one_layout_only(side: int | None, other: int | None, channels: int) -> None:
    assert static_shape((None, side, other, channels), 1, (side or 8, other or 8))[1:] == (
        side or 8,
        other or 8,
        channels,
    )
    with pytest.raises(UnsupportedLayerError, match="the model is channels-first"):
        static_shape((None, channels, side, other))


def test_channels_first_model_behind_a_permutation_converts_to_what_it_computes() -> None:
    """What the refusal says to do can be done."""
    layers, image = keras.layers, keras.Input((8, 8, 3))
    x = layers.Conv2D(4, 3, data_format="channels_first")(layers.Permute((3, 1, 2))(image))
    model = keras.Model(image, layers.Dense(2)(layers.Flatten()(layers.ReLU()(x))))
    images = nets.batch(8, 8)
    got = run(convert(model, "none").content, images)
    np.testing.assert_allclose(got, model(images), rtol=1e-4, atol=1e-5)
    assert np.abs(got - model(images.transpose(0, 2, 1, 3))).max() > 0.01
    first = keras.Model(model.layers[2].input, model.output)
    with pytest.raises(UnsupportedLayerError, match="the model is channels-first"):
        freeze(first)


def test_static_shape_with_a_fixed_other_batch_fails() -> None:
    with pytest.raises(CompressionError, match="open batch or batch 1, got batch 8"):
        static_shape((8, 16, 16, 3))


def test_freeze_signature_with_two_inputs_fails() -> None:
    signature = SimpleNamespace(structured_input_signature=((), {"a": 0, "b": 0}), structured_outputs={"y": 0})
    with pytest.raises(UnsupportedLayerError, match=r"one input and one output, got inputs \['a', 'b'\]"):
        freeze_signature(signature)
