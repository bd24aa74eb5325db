"""What a frozen graph gives is read, cut to logits or kept: a SavedModel has no layers to look at, only operators."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tensorflow as tf

from cxr_compress.errors import CompressionError, UnsupportedLayerError
from cxr_compress.keras2 import keras
from cxr_compress.lite import convert, freeze
from cxr_compress.lite.freeze import load_saved_model
from cxr_compress.lite.head import read_frozen_head
from tests.lite import nets
from tests.lite.conftest import run

layers = keras.layers
End = Callable[[Any], Any]


def saved(folder: Path, end: End, classes: int) -> Path:
    """A SavedModel of a small network whose last numbers go through `end`, in TensorFlow and not in Keras."""
    image = keras.Input((8, 8, 3))
    x = layers.GlobalAveragePooling2D()(layers.ReLU()(layers.Conv2D(6, 3, name="body")(image)))
    network = nets.settle(keras.Model(image, layers.Dense(classes, name="head")(x)))

    class Served(tf.Module):
        def __init__(self) -> None:
            super().__init__()
            self.network = network

        @tf.function(input_signature=[tf.TensorSpec((None, 8, 8, 3), tf.float32, name="image")])
        def serve(self, image: Any) -> Any:
            return {"scores": end(self.network(image, training=False))}

    module = Served()
    tf.saved_model.save(module, str(folder / "saved"), {"serving_default": module.serve})
    return folder / "saved"


def softmax_by_hand(z: Any) -> Any:
    shares = tf.exp(z - tf.reduce_max(z, axis=-1, keepdims=True))
    return shares / tf.reduce_sum(shares, axis=-1, keepdims=True)


# end, classes, what of the file gives the probabilities, whether they exclude one another
ENDS: dict[str, tuple[End, int, str, bool]] = {
    "logits": (lambda z: z, 3, "logits", False),
    "sigmoid": (tf.sigmoid, 3, "logits", False),
    "sigmoid_reshaped": (lambda z: tf.reshape(tf.sigmoid(z), (-1, 3)), 3, "logits", False),
    "sigmoids_in_a_row": (lambda z: tf.concat([tf.sigmoid(z[:, :1]), tf.sigmoid(z[:, 1:])], -1), 3, "logits", False),
    "softmax": (tf.nn.softmax, 3, "logits", True),
    "log_softmax": (tf.nn.log_softmax, 3, "logits", True),
    "sigmoid_by_hand": (lambda z: 1 / (1 + tf.exp(-z)), 3, "probabilities", False),
    "softmax_by_hand": (softmax_by_hand, 3, "probabilities", True),
    "one_minus": (lambda z: 1 - tf.sigmoid(z), 3, "probabilities", False),
    "mean": (lambda z: 0.5 * (tf.sigmoid(z) + tf.sigmoid(-2 * z + 1)), 3, "probabilities", False),
}


@pytest.mark.parametrize("kind", ENDS)
def test_read_frozen_head_probabilities_of_the_file_are_those_of_the_graph(kind: str, tmp_path: Path) -> None:
    end, classes, gives, exclusive = ENDS[kind]
    frozen = load_saved_model(saved(tmp_path, end, classes))
    made, change = read_frozen_head(frozen)
    assert (change.gives, made.gives, change.exclusive, change.outputs) == (gives, gives, exclusive, classes)
    images = nets.batch(16, 8)
    outputs = run(convert(made, "none").content, images).astype(np.float64)
    expected = np.concatenate([tf.nest.flatten(frozen.function(tf.constant(one[None])))[0] for one in images])
    if kind == "log_softmax":
        expected = np.exp(expected)
    if gives == "logits" and kind != "logits":
        shares = np.exp(outputs) / np.exp(outputs).sum(axis=1, keepdims=True)
        found = shares if exclusive else 1 / (1 + np.exp(-outputs))
    else:
        found = outputs
    # Logits of |z| < 10 are rounded to 1e-6 in other sums; a probability moves by a quarter of that at most.
    np.testing.assert_allclose(found, expected, atol=2e-6)
    assert np.abs(found - np.roll(expected, 1, axis=0)).max() > 0.05  # the control: other images


@pytest.mark.parametrize("positive", [0, 1])
@pytest.mark.parametrize("end", [tf.nn.softmax, softmax_by_hand], ids=["operator", "by_hand"])
def test_read_frozen_head_of_two_classes_leaves_the_finding(end: End, positive: int, tmp_path: Path) -> None:
    frozen = load_saved_model(saved(tmp_path, end, 2))
    with pytest.raises(CompressionError, match="two classes, and which of them is the finding is not said"):
        read_frozen_head(frozen)
    made, change = read_frozen_head(frozen, positive=positive)
    assert (change.outputs, change.exclusive, made.output_shape) == (1, False, (1, 1))
    image = nets.batch(1, 8)
    outputs = run(convert(made, "none").content, image)[0, 0]
    found = outputs if change.gives == "probabilities" else 1 / (1 + np.exp(-outputs))
    both = tf.nest.flatten(frozen.function(tf.constant(image)))[0].numpy()[0]
    assert found == pytest.approx(both[positive], abs=2e-6)
    assert abs(found - both[1 - positive]) > 0.05


@pytest.mark.parametrize(
    ("end", "message"),
    [
        (lambda z: 2 * tf.sigmoid(z) - 1, "its end computes something else from what Sigmoid gives"),
        (tf.tanh, "it ends in Tanh"),
        (tf.nn.relu, "it ends in Relu"),
    ],
)
def test_read_frozen_head_of_neither_is_refused_by_name(end: End, message: str, tmp_path: Path) -> None:
    with pytest.raises(UnsupportedLayerError, match=message):
        read_frozen_head(load_saved_model(saved(tmp_path, end, 3)))


def test_convert_of_hidden_probabilities_is_refused_and_of_known_ones_is_not() -> None:
    image = keras.Input((8, 8, 3))
    x = layers.GlobalAveragePooling2D()(layers.Conv2D(6, 3)(image))
    heads = [layers.Dense(2, activation="sigmoid")(x) for _ in range(2)]
    frozen = freeze(nets.settle(keras.Model(image, layers.Average()(heads))))
    with pytest.raises(CompressionError, match="the outputs of the model stay in"):
        convert(frozen, "none")
    assert convert(dataclasses.replace(frozen, gives="probabilities"), "none").content
