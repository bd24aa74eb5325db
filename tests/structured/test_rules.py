"""Each rule against what its layer really does: poke one channel, see which change."""

from __future__ import annotations

import numpy as np
import pytest

from cxr_compress.keras2 import keras
from cxr_compress.models.keras_graph import layers_by_path
from cxr_compress.structured import Budget, analyze_channels, remove_channels, score_channels, select_channels
from tests import nets
from tests.structured.oracle import parity
from tests.structured.tagging import tagged_by_analysis, tagged_by_hand

layers = keras.layers


def made(shape: tuple[int, ...], channels: int, name: str = "make"):
    """An input, and a tensor of so many channels made by a 1x1 convolution of it."""
    image = keras.Input((*shape, 2))
    conv = {1: layers.Conv1D, 2: layers.Conv2D, 3: layers.Conv3D}[len(shape)]
    return image, conv(channels, 1, name=name)(image)


def headed(image, x) -> keras.Model:
    return nets.enliven(keras.Model(image, layers.Dense(2, name="head")(x)))


class Twice:
    """A layer on a tensor and itself."""

    def __init__(self, layer):
        self.layer = layer

    def __call__(self, x):
        return self.layer([x, x])


FOLLOWING = {
    "depthwise x2": ((5, 5), layers.DepthwiseConv2D(2, depth_multiplier=2)),
    "depthwise 1d x3": ((6,), layers.DepthwiseConv1D(2, depth_multiplier=3, use_bias=False)),
    "as many groups as channels": ((5, 5), layers.Conv2D(8, 2, groups=4)),
    "batch norm": ((4, 4), layers.BatchNormalization()),
    "batch norm without scale": ((4, 4), layers.BatchNormalization(scale=False, axis=3)),
    "prelu": ((4, 4), layers.PReLU()),
    "shared prelu": ((4, 4), layers.PReLU(shared_axes=[1, 2])),
    "flatten": ((3, 2), layers.Flatten()),
    "reshape to gate": ((2, 3), layers.Reshape((3, 2, 4))),
    "reshape to inferred": ((2, 3), layers.Reshape((6, -1))),
    "reshape to flat": ((2, 3), layers.Reshape((24,))),
    "flatten and back": ((2, 3), lambda x: layers.Reshape((2, 3, 4))(layers.Flatten()(x))),
    "permute": ((2, 3), layers.Permute((2, 1, 3))),
    "concatenate with itself": ((3, 3), Twice(layers.Concatenate())),
    "concatenate along space": ((3, 3), Twice(layers.Concatenate(axis=1))),
    "multiply": ((3, 3), Twice(layers.Multiply())),
    "average": ((3, 3), Twice(layers.Average())),
    "maximum": ((3, 3), Twice(layers.Maximum())),
    "pool 1d": ((6,), layers.MaxPooling1D(2)),
    "pool 3d": ((4, 4, 4), layers.AveragePooling3D(2)),
    "global pool 1d": ((6,), layers.GlobalMaxPooling1D()),
    "global pool 2d": ((4, 4), layers.GlobalAveragePooling2D(keepdims=True)),
    "pad": ((4, 4), layers.ZeroPadding2D(1)),
    "crop": ((5, 5, 5), layers.Cropping3D(1)),
    "up-sample": ((3, 3), layers.UpSampling2D(2, interpolation="bilinear")),
    "rescale": ((3, 3), layers.Rescaling(2.0, offset=1.0)),
    "repeat": ((6,), lambda x: layers.RepeatVector(2)(layers.GlobalAveragePooling1D()(x))),
    "softmax over space": ((3, 3), lambda x: layers.Softmax(axis=1)(x * [[[[1.0]], [[2.0]], [[3.0]]]])),
    "hard swish": ((3, 3), lambda x: x * layers.ReLU(60.0)(x + 30.0) / 6),
    "arithmetic": ((3, 3), lambda x: 2.0 - (-x) ** 2 * 0.1 + abs(x) / 3),
    "gate": ((3, 3), lambda x: x * layers.GlobalAveragePooling2D(keepdims=True)(x)),
    "slice positions": ((4, 4), lambda x: x[:, 1:, ::2]),
    "take a position": ((4, 4), lambda x: x[:, 1, ...]),
}


@pytest.mark.parametrize(("shape", "layer"), FOLLOWING.values(), ids=FOLLOWING)
def test_rule_following_layer_moves_the_channels_that_the_layer_moves(shape, layer):
    image, x = made(shape, 4)
    model = headed(image, layer(x))
    assert tagged_by_analysis(model) == tagged_by_hand(model, nets.batch(model))
    assert analyze_channels(model).groups["make"].channels == 4


MAKING = {
    "conv1d": ((6,), layers.Conv1D(6, 3, name="make2")),
    "conv3d": ((4, 4, 4), layers.Conv3D(6, 2, name="make2")),
    "grouped": ((5, 5), layers.Conv2D(6, 3, groups=2, name="make2")),
    "conv1d transposed": ((4,), layers.Conv1DTranspose(6, 2, name="make2")),
    "conv2d transposed": ((4, 4), layers.Conv2DTranspose(6, 3, strides=2, name="make2")),
    "conv3d transposed": ((3, 3, 3), layers.Conv3DTranspose(6, 2, use_bias=False, name="make2")),
    "separable 1d x2": ((6,), layers.SeparableConv1D(6, 2, depth_multiplier=2, name="make2")),
    "separable 2d": ((5, 5), layers.SeparableConv2D(6, 2, name="make2")),
    "dense over positions": ((3, 3), layers.Dense(6, name="make2")),
    "group norm": ((3, 3), layers.GroupNormalization(2)),
    "instance norm": ((3, 3), layers.GroupNormalization(-1)),
}


@pytest.mark.parametrize(("shape", "layer"), MAKING.values(), ids=MAKING)
def test_rule_making_layer_equals_the_oracle_and_other_channels_do_not(shape, layer):
    """Pitfall 4: grouped, separable, depthwise and transposed kernels are cut along the right axis."""
    image, x = made(shape, 4)
    x = layer(layers.ReLU()(x))
    x = layers.Flatten()(layers.ReLU()(x))
    model = nets.enliven(keras.Model(image, layers.Dense(2, name="head")(x)))
    analysis = analyze_channels(model)
    scores = score_channels(model, analysis, criterion="random", seed=3)
    plan = select_channels(analysis, scores, Budget(macs=0.7), round_to=1)
    found = parity(model, plan, nets.batch(model, images=6))
    # As in test_rebuild.py.
    assert found.error < 1e-5
    assert found.control > 1e-2
    assert remove_channels(model, plan).count_params() == plan.after.params


def backwards(x):
    """An activation that mixes channels, as any function may."""
    return x[..., ::-1]


@pytest.mark.parametrize(
    ("layer", "reason"),
    [
        (layers.Softmax(name="x"), "x (Softmax) mixes channels"),
        (layers.LayerNormalization(name="x"), "x (LayerNormalization) takes statistics over the channels"),
        (layers.LayerNormalization(axis=[1, 2], name="x"), "normalizes more or other axes than the channels"),
        (layers.GroupNormalization(1, name="x"), "takes statistics over all channels at once"),
        (layers.Permute((3, 1, 2), name="x"), "x (Permute) moves the channels to another axis"),
        (layers.Reshape((4, 4, 2, 2), name="x"), "x (Reshape) cuts the channel axis apart"),
        (layers.Lambda(lambda x: x, name="x"), "x (Lambda) has no rule for its channels"),
        (layers.Rescaling([1.0, 2.0, 3.0, 4.0], name="x"), "x (Rescaling) has one constant per channel"),
        (lambda x: x * np.arange(4, dtype=np.float32), "calls math.multiply with one constant per channel"),
        (lambda x: x[..., :2], "(SlicingOpLambda) cuts or moves the channels or the batch"),
        (lambda x: x[..., None], "(SlicingOpLambda) cuts or moves the channels or the batch"),
        (layers.Activation(backwards, name="x"), "x (Activation) has an activation of its own, which may mix"),
    ],
)
def test_rule_layer_beyond_it_is_protected_with_the_reason(layer, reason):
    """Pitfall 6: unknown layers, Lambda and operations are protected by name, never skipped."""
    image, x = made((4, 4), 4)
    analysis = analyze_channels(keras.Model(image, layers.Dense(2)(layers.Flatten()(layer(x)))))
    assert reason in analysis.protected["make"]


def test_rule_class_of_the_same_name_from_elsewhere_is_not_taken_for_keras_own():
    class ReLU(layers.Layer):
        """Mixes channels under a harmless name."""

        def call(self, inputs):
            return inputs[..., ::-1]

    image, x = made((4, 4), 4)
    analysis = analyze_channels(keras.Model(image, layers.Dense(2)(ReLU(name="x")(x))))
    assert "x (ReLU) is not Keras's own layer of that name" in analysis.protected["make"]


def test_rule_nested_subclassed_model_is_protected_and_rebuilt_whole():
    class Backbone(keras.Model):
        def __init__(self, **options):
            super().__init__(**options)
            self.inner = layers.Conv2D(4, 1)

        def call(self, inputs):
            return self.inner(inputs)

        def get_config(self):
            return {"name": self.name}

    image, x = made((4, 4), 4)
    x = layers.Conv2D(6, 1, name="after")(Backbone(name="own")(x))
    model = keras.Model(image, layers.Dense(2)(layers.ReLU()(x)))
    analysis = analyze_channels(model)
    assert "own (Backbone) has no rule" in analysis.protected["make"]
    plan = select_channels(analysis, score_channels(model, analysis), Budget(params=0.9), round_to=1)
    found = parity(model, plan, nets.batch(model, images=6))
    assert found.error < 1e-5
    assert found.control > 1e-2


def test_layers_by_path_names_nested_layers_with_their_models():
    assert "backbone/stem" in layers_by_path(nets.nested())
