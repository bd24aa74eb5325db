"""Probabilities at the end of a model become the logits they came from, exactly, or the note says that they do not."""

from __future__ import annotations

import json
import re

import numpy as np
import pytest
import tensorflow as tf

from cxr_compress.errors import CompressionError, UnsupportedLayerError
from cxr_compress.keras2 import keras
from cxr_compress.models import logits_head
from cxr_compress.models.ends import kind_of_outputs
from cxr_compress.models.files import save_model
from cxr_compress.models.logits_head import read_head, softmax_classes, to_logits
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
    # A small scale of the images would give logits near 0, and every sigmoid 0.5.
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
    "heads": lambda: pooled(heads),
    "heads_within_heads": lambda: pooled(
        lambda x: layers.Dropout(0.1)(
            layers.Concatenate()(
                [
                    layers.Activation("sigmoid", name="act")(layers.Dense(1, name="own")(x)),
                    layers.Concatenate(axis=1)([layers.Dense(1, activation="sigmoid")(x) for _ in range(2)]),
                ]
            )
        )
    ),
}


def heads(x):
    """One sigmoid head a finding, as many CheXNets have them, in a row."""
    return layers.Concatenate(name="row")([layers.Dense(1, activation="sigmoid", name=f"h{i}")(x) for i in range(3)])


@pytest.mark.parametrize("kind", SIGMOIDS)
def test_to_logits_sigmoid_of_the_logits_is_the_old_probability(kind, tmp_path):
    old = net(SIGMOIDS[kind]())
    before = json.dumps(old.get_config())
    new, change = to_logits(old)
    check(new, old, whole, tmp_path)
    assert (change.activation, change.outputs) == ("sigmoid", 3)
    assert change.note.startswith("the sigmoid ")
    assert (change.gives, change.probabilities_by) == ("logits", "sigmoid")
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
    assert (change.activation, change.outputs) == ("softmax", 1)
    assert f"that of class {positive} less that of class {1 - positive}" in change.note
    x = nets.batch(old)
    other = old(x).numpy()[:, [1 - positive]]  # the control: the other class
    assert np.abs(sigmoid(new(x)) - other).max() > 0.05
    assert old.output_shape == (None, 2)


def test_to_logits_softmax_of_more_classes_is_a_softmax_of_the_logits():
    old = net(pooled(layers.Dense(5, activation="softmax", name="head")))
    new, change = to_logits(old)
    x = nets.batch(old, 32)
    logits, probabilities = new(x).numpy(), old(x).numpy()
    np.testing.assert_array_equal(logits.argmax(axis=1), probabilities.argmax(axis=1))
    shares = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    np.testing.assert_allclose(shares, probabilities, rtol=0, atol=SAME)
    assert change.exclusive
    assert change.probabilities_by == "softmax"
    assert "which exclude one another" in change.note
    # The control: their sigmoids are other numbers, and some images rank otherwise.
    assert np.abs(sigmoid(logits) - probabilities).max() > 0.1
    assert any(np.any(np.argsort(logits[:, i]) != np.argsort(probabilities[:, i])) for i in range(5))


def test_to_logits_model_of_logits_is_returned_as_it_is():
    for model in (nets.chain(), nets.dense_block(), nets.nested()):
        same, change = to_logits(model)
        assert same is model
        assert (change.activation, change.outputs, change.note) == ("", 3, "")


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


@pytest.mark.parametrize("positive", [None, 2, True])
def test_to_logits_softmax_of_two_asks_which_is_the_finding(positive):
    old = net(PAIRS["layer"]())
    message = "the softmax 'out' is over two classes, and which of them is the finding is not said"
    with pytest.raises(CompressionError, match=message if positive is None else "positive must be 0 or 1"):
        to_logits(old, positive=positive)
    assert softmax_classes(old) == 2
    assert softmax_classes(net(SIGMOIDS["heads"]())) == 0


def both(x, **options):
    return [layers.Dense(2, activation="sigmoid", name=f"head_{i}", **options)(x) for i in range(2)]


def weighted(x):
    """An ensemble's last layer: a weighted mean of two sigmoids, which Keras writes as a Dense layer."""
    return layers.Dense(1, use_bias=False, name="mean")(layers.Dense(2, activation="sigmoid", name="head")(x))


# Each gives probabilities of which no logits can be had (or none that this code knows): a second sigmoid is wrong.
KEPT = {
    "average": (lambda x: layers.Average(name="mean")(both(x)), "'mean' computes .* from .* 'head_0'", False),
    "gate": (lambda x: layers.Multiply(name="gate")(both(x)), "'gate' computes", False),
    "maximum": (lambda x: layers.Maximum(name="either")(both(x)), "'either' computes", False),
    "one_minus": (lambda x: 1.0 - both(x)[0], "computes something else from .* 'head_0'", False),
    "clip": (lambda x: tf.clip_by_value(both(x)[0], 0.01, 0.99), "ends it with TensorFlow's clip_by_value", False),
    "rescaled": (lambda x: layers.Rescaling(0.8, 0.1, name="soft")(both(x)[0]), "'soft' computes", False),
    "written_out": (lambda x: 1 / (1 + tf.exp(-layers.Dense(2)(x))), "ends it with TensorFlow's math.truediv", False),
    "hard": (layers.Dense(2, activation="hard_sigmoid", name="hard"), "ends it with hard_sigmoid", False),
    "weighted": (weighted, "no sigmoid or softmax ends net, yet its outputs are probabilities", False),
    "softmaxes": (
        lambda x: layers.Average()([layers.Dense(3, activation="softmax")(x) for _ in range(2)]),
        "each row sums to 1",
        True,
    ),
    "both_sides": (lambda x: layers.Concatenate()([p := both(x)[0][:, :1], 1.0 - p]), "each row sums to 1", True),
    "heads_apart": (
        lambda x: layers.Concatenate(name="row")(
            [layers.Dense(2, activation="softmax")(x), layers.Dense(1, activation="sigmoid")(x)]
        ),
        "'row' joins heads that end in sigmoid, softmax",
        False,
    ),
}


@pytest.mark.parametrize("kind", KEPT)
def test_read_head_probabilities_in_disguise_are_kept_and_that_is_said(kind):
    head, reason, exclusive = KEPT[kind]
    old = net(pooled(head))
    if kind == "weighted":
        old.get_layer("mean").set_weights([np.array([[0.6], [0.4]])])
    kept, change = read_head(old)
    assert kept is old
    assert (change.gives, change.exclusive, change.activation) == ("probabilities", exclusive, "")
    assert change.note.startswith("the outputs are kept as the probabilities that they are (for 64 inputs")
    assert re.search(reason, change.note), change.note
    with pytest.raises(UnsupportedLayerError, match="expected a model of which logits can be had, but the outputs are"):
        to_logits(old)


NEITHER = {
    "stretched": (lambda x: layers.Rescaling(2.0, -1.0, name="signed")(both(x)[0]), "'signed' computes something else"),
    "sum": (lambda x: layers.Add(name="votes")(both(x)), "'votes' computes something else from .* 'head_0'"),
    "exp": (lambda x: tf.exp(layers.Dense(2)(x)), "ends it with TensorFlow's math.exp"),
}


@pytest.mark.parametrize("kind", NEITHER)
def test_read_head_numbers_that_are_neither_logits_nor_probabilities_are_refused_by_name(kind):
    head, message = NEITHER[kind]
    with pytest.raises(UnsupportedLayerError, match=message):
        read_head(net(pooled(head)))


def test_read_head_hidden_sigmoids_and_gates_do_not_hide_logits():
    """The control of all that is kept: squeeze-and-excite gates and sigmoid layers inside are no end."""

    def head(x):
        gate = layers.Dense(6, activation="sigmoid")(x)
        return layers.Dense(3, name="head")(layers.Multiply()([layers.Dense(6, activation="sigmoid")(x), gate]))

    old = net(pooled(head))
    same, change = read_head(old)
    assert same is old
    assert (change.gives, change.note) == ("logits", "")


def test_kind_of_outputs_constant_or_not_finite_tells_nothing():
    for value in (0.5, np.nan, np.inf):
        assert kind_of_outputs(lambda images, value=value: np.full((len(images), 2), value), (8, 8, 3)) == "constant"
    assert kind_of_outputs(lambda images: images.reshape(len(images), -1)[:, :2], (8, 8, 3)) == "logits"


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


def several(outer):
    """A model in a model that gives two heads, of which the outer one takes what `outer` says."""
    image = keras.Input((8, 8, 3), name="image")
    features = layers.GlobalAveragePooling2D()(nets.conv_bn(image, 6, "body"))
    first = layers.Dense(2, activation="softmax", name="aux")(features)
    second = layers.Dense(2, activation="sigmoid", name="main")(features)
    inner = nets.enliven(keras.Model(image, [first, second], name="inner"))
    fed = keras.Input((8, 8, 3))
    return keras.Model(fed, outer(*inner(fed)))


def test_read_head_of_the_output_that_the_outer_model_takes(tmp_path):
    model = several(lambda aux, main: main)
    plain, change = read_head(model)
    assert (change.activation, change.layer) == ("sigmoid", "inner/main")
    x = nets.batch(model, 16)
    np.testing.assert_allclose(sigmoid(plain(x)), model(x).numpy(), rtol=0, atol=SAME)
    save_model(plain, tmp_path / "plain.keras")
    np.testing.assert_array_equal(keras.models.load_model(tmp_path / "plain.keras")(x), plain(x))


def test_read_head_of_heads_that_are_put_in_another_order():
    image = keras.Input((8, 8, 3), name="image")
    features = layers.GlobalAveragePooling2D()(nets.conv_bn(image, 6, "body"))
    heads = [layers.Dense(1, activation="sigmoid", name=name)(features) for name in ("a", "b")]
    inner = nets.enliven(keras.Model(image, heads, name="inner"))
    fed = keras.Input((8, 8, 3))
    model = keras.Model(fed, layers.Concatenate()(inner(fed)[::-1]))
    plain, _ = read_head(model)
    x = nets.batch(model, 16)
    np.testing.assert_allclose(sigmoid(plain(x)), model(x).numpy(), rtol=0, atol=SAME)
    # The control: in the order of the inner model they are other findings.
    assert np.abs(sigmoid(plain(x))[:, ::-1] - model(x).numpy()).max() > 0.01


def test_read_head_keeps_one_softmax_for_each_finding():
    tail = (layers.Dense(6), layers.Reshape((3, 2)), layers.Softmax(name="each"), layers.Flatten())
    model = net(pooled(*tail))
    kept, change = read_head(model)
    assert kept is model
    assert (change.gives, change.exclusive) == ("probabilities", False)
    assert "the softmax 'each' is over 2 classes, and the model gives 6 outputs" in change.note


def test_read_head_refuses_a_layer_that_is_called_as_in_training():
    image = keras.Input((8, 8, 3), name="image")
    features = layers.GlobalAveragePooling2D()(nets.conv_bn(image, 6, "body"))
    always = layers.Dropout(0.5, name="always")(features, training=True)
    model = keras.Model(image, layers.Dense(2, activation="sigmoid")(always))
    with pytest.raises(UnsupportedLayerError, match=r"'always' is called with training=True"):
        read_head(model)
    fed = keras.Input((8, 8, 3))
    with pytest.raises(UnsupportedLayerError, match=r"'always' is called with training=True"):
        read_head(keras.Model(fed, model(fed)))


def test_read_head_compares_what_it_made_with_the_model(monkeypatch):
    # Faults that nobody thought of: weights of another layer, here of another model.
    monkeypatch.setattr(logits_head, "_copy_weights", lambda model, plain, *others: nets.enliven(plain, seed=5))
    model = net(pooled(layers.Dense(3, activation="sigmoid", name="head")))
    kept, change = read_head(model)
    assert kept is model  # whose probabilities are right
    assert change.gives == "probabilities"
    assert "without it the model gives other probabilities" in change.note
