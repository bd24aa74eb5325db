"""Probabilities at the end of a model become the logits they came from, exactly, or the note says that they do not."""

from __future__ import annotations

import json

import numpy as np
import pytest
import tensorflow as tf

from cxr_compress.errors import CompressionError, UnsupportedLayerError
from cxr_compress.keras2 import keras
from cxr_compress.models.keras_file import save_model
from cxr_compress.models.logits_head import to_logits
from tests import nets

layers = keras.layers
# Both sides round z to float32 (|z| < 10: 1e-6) in other sums; a probability moves by at most a quarter of that.
SAME = 1e-6


def net(head, name="net"):
    """image 8x8x3 -> conv 3x3 (6) -> BN -> ReLU -> `head`"""
    image = keras.Input((8, 8, 3), name="image")
    return nets.enliven(keras.Model(image, head(nets.conv_bn(image, 6, "body")), name=name))


def pooled(*tail):
    """GAP, then layers."""

    def head(x):
        x = layers.GlobalAveragePooling2D()(x)
        for layer in tail:
            x = layer(x)
        return x

    return head


def sigmoid(logits):
    return 1 / (1 + np.exp(-np.asarray(logits, np.float64)))


def check(model, old, expected, tmp_path):
    """Compare probabilities, and see that plain Keras loads the result."""
    x = nets.batch(model, 16)
    # A small scale of the films would give logits near 0, and every sigmoid 0.5.
    assert np.ptp(expected(old(x).numpy())) > 0.05
    np.testing.assert_allclose(sigmoid(model(x)), expected(old(x).numpy()), rtol=0, atol=SAME)
    save_model(model, tmp_path / "plain.keras")
    loaded = keras.models.load_model(tmp_path / "plain.keras")
    np.testing.assert_array_equal(loaded(x), model(x))
    assert "sigmoid" not in json.dumps(loaded.get_config())
    assert "softmax" not in json.dumps(loaded.get_config())


def whole(probabilities):
    return probabilities


def of_class(number):
    return lambda probabilities: probabilities.reshape(len(probabilities), -1)[:, [number]]


SIGMOIDS = {
    "argument": lambda: pooled(layers.Dense(3, activation="sigmoid", name="head")),
    "layer": lambda: pooled(layers.Dense(3, name="head"), layers.Activation("sigmoid", name="out")),
    "operation": lambda: pooled(layers.Dense(3, name="head"), tf.sigmoid),
    "keras_function": lambda: pooled(layers.Dense(3, name="head"), keras.activations.sigmoid),
    "reshaped": lambda: pooled(layers.Dense(3, activation="sigmoid", name="head"), layers.Reshape((3,))),
    "layer_then_dropout": lambda: pooled(
        layers.Dense(3, name="head"), layers.Activation("sigmoid", name="out"), layers.Dropout(0.2)
    ),
    "convolution": lambda: pooled(
        layers.Reshape((1, 1, 6)), layers.Conv2D(3, 1, activation="sigmoid", name="head"), layers.Flatten()
    ),
    "sequential": lambda: pooled(
        keras.Sequential(
            [keras.Input((6,)), layers.Dense(5, activation="relu"), layers.Dense(3, activation="sigmoid", name="head")],
            name="top",
        )
    ),
    "sequential_layer": lambda: pooled(
        keras.Sequential([keras.Input((6,)), layers.Dense(3, name="head"), layers.Activation("sigmoid")], name="top")
    ),
}


@pytest.mark.parametrize("kind", SIGMOIDS)
def test_to_logits_sigmoid_of_the_logits_is_the_old_probability(kind, tmp_path):
    old = net(SIGMOIDS[kind]())
    before = json.dumps(old.get_config())
    new, change = to_logits(old)
    check(new, old, whole, tmp_path)
    assert (change.activation, change.outputs, change.exact) == ("sigmoid", 3, True)
    assert change.note.startswith("the sigmoid '")
    for one, other in zip(old.get_weights(), new.get_weights(), strict=True):
        np.testing.assert_array_equal(one, other)
    assert {layer.name for layer in new.layers} <= {layer.name for layer in old.layers}
    assert json.dumps(old.get_config()) == before
    assert not {id(weight) for weight in old.weights} & {id(weight) for weight in new.weights}
    x = nets.batch(old)
    wrong = sigmoid(new(x)) - sigmoid(old(x))  # the control: the model as it was is no logits model
    assert np.abs(wrong).max() > 0.05


PAIRS = {
    "argument": lambda: pooled(layers.Dense(2, activation="softmax", name="head")),
    "no_bias": lambda: pooled(layers.Dense(2, activation="softmax", use_bias=False, name="head")),
    "layer": lambda: pooled(layers.Dense(2, name="head"), layers.Softmax(name="out")),
    "activation": lambda: pooled(layers.Dense(2, name="head"), layers.Dropout(0.1), layers.Activation("softmax")),
    "operation": lambda: pooled(layers.Dense(2, name="head"), tf.nn.softmax),
    "keras_function": lambda: pooled(layers.Dense(2, name="head"), keras.activations.softmax),
    "convolution": lambda: (
        lambda x: layers.Softmax()(layers.GlobalAveragePooling2D()(layers.Conv2D(2, 1, name="head")(x)))
    ),
    "flattened": lambda: (
        lambda x: layers.Softmax()(
            layers.Flatten()(layers.Conv2D(2, 1, name="head")(layers.GlobalAveragePooling2D(keepdims=True)(x)))
        )
    ),
    "nested": lambda: pooled(
        keras.Sequential([keras.Input((6,)), layers.Dense(2, activation="softmax", name="head")], name="top")
    ),
    "model_then_layer": lambda: pooled(
        keras.Sequential([keras.Input((6,)), layers.Dense(2, name="head")], name="top"), layers.Softmax()
    ),
}


@pytest.mark.parametrize("positive", [0, 1])
@pytest.mark.parametrize("kind", PAIRS)
def test_to_logits_softmax_of_two_becomes_one_logit_of_the_positive_class(kind, positive, tmp_path):
    old = net(PAIRS[kind]())
    new, change = to_logits(old, positive=positive)
    assert new.output_shape == (None, 1)
    check(new, old, of_class(positive), tmp_path)
    assert (change.activation, change.outputs, change.exact) == ("softmax", 1, True)
    assert f"that of class {positive} less that of class {1 - positive}" in change.note
    x = nets.batch(old)
    other = old(x).numpy()[:, [1 - positive]]  # the control: the other class
    assert np.abs(sigmoid(new(x)) - other).max() > 0.05
    assert old.output_shape == (None, 2)


def test_to_logits_softmax_of_more_classes_keeps_the_likeliest_and_says_what_it_does_not_keep():
    old = net(pooled(layers.Dense(5, activation="softmax", name="head")))
    new, change = to_logits(old)
    x = nets.batch(old, 32)
    logits, probabilities = new(x).numpy(), old(x).numpy()
    np.testing.assert_array_equal(logits.argmax(axis=1), probabilities.argmax(axis=1))
    shares = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    np.testing.assert_allclose(shares, probabilities, rtol=0, atol=SAME)
    assert not change.exact
    assert "shared one total and were no independent findings" in change.note
    # What the note warns of: the sigmoid is another number, and some films rank otherwise.
    assert np.abs(sigmoid(logits) - probabilities).max() > 0.1
    assert any(np.any(np.argsort(logits[:, i]) != np.argsort(probabilities[:, i])) for i in range(5))


def test_to_logits_model_of_logits_is_returned_as_it_is():
    for model in (nets.chain(), nets.dense_block(), nets.nested()):
        same, change = to_logits(model)
        assert same is model
        assert (change.activation, change.exact, change.outputs, change.note) == ("", True, 3, "")


def test_to_logits_is_done_once():
    once, _ = to_logits(net(pooled(layers.Dense(3, activation="sigmoid"))))
    assert to_logits(once)[0] is once


def test_to_logits_casting_activation_leaves_the_logits_in_float32():
    old = net(
        pooled(
            layers.Dense(3, dtype=keras.mixed_precision.Policy("mixed_bfloat16")),
            layers.Activation("sigmoid", dtype="float32", name="out"),
        )
    )
    new, _ = to_logits(old)
    assert new.output.dtype == tf.float32
    assert new.layers[-1].name == "out"
    np.testing.assert_allclose(sigmoid(new(nets.batch(old))), old(nets.batch(old)), rtol=0, atol=SAME)


def shared_head(x):
    head = layers.Dense(6, activation="sigmoid", name="both")
    return head(head(layers.GlobalAveragePooling2D()(x)))


REFUSED = {
    "tanh": (pooled(layers.Dense(3, activation="tanh", name="head")), "'head' ends it with tanh: give it a Dense"),
    "relu": (pooled(layers.Dense(3), layers.ReLU(name="last")), "'last' ends it with ReLU"),
    "hard": (pooled(layers.Dense(3, activation="hard_sigmoid", name="head")), "ends it with hard_sigmoid"),
    "operation": (pooled(layers.Dense(3), tf.math.tanh), "ends it with TensorFlow's math.tanh"),
    "written_out": (pooled(layers.Dense(3), lambda x: 1 / (1 + tf.exp(-x))), "ends it with TensorFlow's math.truediv"),
    "pooled": (
        lambda x: layers.GlobalAveragePooling2D(name="mean")(layers.Conv2D(3, 1, activation="sigmoid", name="maps")(x)),
        "'maps' gives probabilities that 'mean' pools",
    ),
    "shared": (shared_head, "'both', which ends net, is called 2 times in it"),
    "no_dense": (pooled(layers.Dense(2), layers.BatchNormalization(name="bn"), layers.Softmax()), "BatchNormal.* 'bn'"),
    "relu_pair": (pooled(layers.Dense(2, activation="relu", name="head"), layers.Softmax()), "found Dense 'head'"),
    "pixels": (
        lambda x: layers.Softmax()(layers.Flatten()(layers.Conv2D(1, (8, 7), name="head")(x))),
        "found Conv2D 'head'",
    ),
    "reshape_pair": (
        pooled(layers.Dense(2, activation="softmax"), layers.Reshape((2,), name="again")),
        "found Reshape 'again'",
    ),
    "moved_operation": (pooled(layers.Dense(3), tf.sigmoid, layers.Reshape((3,), name="last")), "'last' follows the"),
}


@pytest.mark.parametrize("kind", REFUSED)
def test_to_logits_end_that_cannot_be_edited_is_an_error(kind):
    head, message = REFUSED[kind]
    with pytest.raises(UnsupportedLayerError, match=message):
        to_logits(net(head))


def test_to_logits_softmax_over_places_or_one_class_is_an_error():
    with pytest.raises(UnsupportedLayerError, match=r"softmax over the last axis, that of 'out' is over axis 1"):
        to_logits(net(lambda x: layers.Softmax(axis=1, name="out")(layers.Conv2D(3, 1)(x))))
    with pytest.raises(CompressionError, match="the softmax 'head' is over one class and always gives 1"):
        to_logits(net(pooled(layers.Dense(1, activation="softmax", name="head"))))


def test_to_logits_other_models_and_classes_are_an_error():
    class Own(keras.Model):
        pass

    with pytest.raises(UnsupportedLayerError, match="built Sequential model, got Own 'own', whose end cannot be read"):
        to_logits(Own(name="own"))
    with pytest.raises(UnsupportedLayerError, match="one output, two_outputs has 2: cut it"):
        to_logits(nets.two_outputs())
    with pytest.raises(CompressionError, match="positive must be 0 or 1, which of two classes is the finding, got 2"):
        to_logits(nets.chain(), positive=2)
