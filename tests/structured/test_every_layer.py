"""Every layer class of Keras in the middle of a network: counted by hand or named, pruned or refused in one line."""

from __future__ import annotations

import pytest
import tensorflow as tf

from cxr_compress.errors import BudgetError, UnsupportedLayerError
from cxr_compress.keras2 import keras
from cxr_compress.models.keras_graph import layers_by_path
from cxr_compress.structured import Budget, ChannelPlan, analyze_channels, measure_cost, remove_channels
from cxr_compress.structured.describe import describe_model, describe_plan

layers = keras.layers
SIDE, CHANNELS = 6, 8
STEPS = SIDE * SIDE


def steps(x):
    """The positions of an image as steps in time."""
    return layers.Reshape((-1, x.shape[-1]))(x)


def frames(x):
    """The image as two frames of 3 x 6."""
    return layers.Reshape((2, 3, SIDE, CHANNELS))(x)


def volume(x):
    return layers.Reshape((SIDE, SIDE, 2, CHANNELS // 2))(x)


def after(prepare, layer):
    return lambda x: layer(prepare(x))


def made(names, *arguments, prepare=lambda x: x):
    """Layers of these classes, all made alike."""
    return {name: after(prepare, getattr(layers, name)(*arguments)) for name in names.split()}


def twice(layer, prepare=lambda x: x):
    return lambda x: layer([prepare(x), prepare(x)])


# Class -> the layer on a tensor (6, 6, 8), and its own MACs; None where they are not counted.
NOTHING = {
    **made("ReLU LeakyReLU ELU PReLU ThresholdedReLU Softmax Identity Flatten UnitNormalization LayerNormalization"),
    **made("BatchNormalization RandomFlip Masking GlobalMaxPooling2D GlobalAveragePooling2D"),
    **made("GlobalMaxPooling1D GlobalAveragePooling1D", prepare=steps),
    **made("GlobalMaxPooling3D GlobalAveragePooling3D", prepare=volume),
    **made("Dropout AlphaDropout GaussianNoise GaussianDropout SpatialDropout2D ActivityRegularization", 0.3),
    **made("RandomRotation RandomZoom RandomContrast RandomBrightness", 0.3),
    **made("MaxPooling2D AveragePooling2D Cropping2D UpSampling2D ZeroPadding2D", 2),
    **made("MaxPooling1D AveragePooling1D Cropping1D UpSampling1D ZeroPadding1D", 2, prepare=steps),
    **made("MaxPooling3D AveragePooling3D UpSampling3D", 2, prepare=volume),
    **made("Cropping3D ZeroPadding3D", 1, prepare=layers.Reshape((3, 3, 4, CHANNELS))),
    **{name: twice(layer) for name, layer in made("Add Multiply Average Maximum Minimum Concatenate").items()},
    "SpatialDropout1D": after(steps, layers.SpatialDropout1D(0.3)),
    "SpatialDropout3D": after(volume, layers.SpatialDropout3D(0.3)),
    "Activation": layers.Activation("tanh"),
    "GroupNormalization": layers.GroupNormalization(2),
    "Normalization": layers.Normalization(mean=[0.0] * CHANNELS, variance=[4.0] * CHANNELS),
    "Rescaling": layers.Rescaling(0.5),
    "Subtract": lambda x: layers.Subtract()([x, layers.ReLU()(x)]),
    "Reshape": layers.Reshape((4, 9, CHANNELS)),
    "Permute": layers.Permute((2, 1, 3)),
    "RepeatVector": lambda x: layers.RepeatVector(3)(layers.GlobalMaxPooling2D()(x)),
    "Resizing": layers.Resizing(5, 4, crop_to_aspect_ratio=True),
    "CenterCrop": layers.CenterCrop(4, 4),
    "RandomCrop": layers.RandomCrop(4, 4),
    "RandomTranslation": layers.RandomTranslation(0.2, 0.2),
    "Discretization": layers.Discretization([0.0, 1.0]),
    "CategoryEncoding": lambda x: layers.CategoryEncoding(4, "multi_hot")(
        layers.Discretization([0.0, 1.0])(layers.GlobalMaxPooling2D()(x))
    ),
    "Embedding": lambda x: layers.Embedding(4, 3)(layers.Discretization([0.0, 1.0])(layers.GlobalMaxPooling2D()(x))),
}  # fmt: skip
COUNTED = {
    "Conv1D": (after(steps, layers.Conv1D(4, 2)), 35 * 2 * 8 * 4),
    "Conv2D": (layers.Conv2D(4, 3, groups=2), 16 * 9 * 4 * 4),
    "Conv3D": (after(frames, layers.Conv3D(4, 2)), 1 * 2 * 5 * 8 * 8 * 4),
    "Conv1DTranspose": (after(steps, layers.Conv1DTranspose(4, 2)), 36 * 2 * 8 * 4),
    "Conv2DTranspose": (layers.Conv2DTranspose(4, 3, strides=2), 36 * 9 * 8 * 4),
    "Conv3DTranspose": (after(frames, layers.Conv3DTranspose(4, 2)), 36 * 8 * 8 * 4),
    "DepthwiseConv1D": (after(steps, layers.DepthwiseConv1D(2)), 35 * 2 * 8),
    "DepthwiseConv2D": (layers.DepthwiseConv2D(3, depth_multiplier=2), 16 * 9 * 16),
    "SeparableConv1D": (after(steps, layers.SeparableConv1D(4, 2)), 35 * (2 * 8 + 8 * 4)),
    "SeparableConv2D": (layers.SeparableConv2D(4, 3), 16 * (9 * 8 + 8 * 4)),
    "LocallyConnected1D": (after(steps, layers.LocallyConnected1D(4, 2)), 35 * 2 * 8 * 4),
    "LocallyConnected2D": (layers.LocallyConnected2D(4, 3), 16 * 9 * 8 * 4),
    "Dense": (layers.Dense(5), STEPS * 8 * 5),
    "EinsumDense": (layers.EinsumDense("abcd,cde->abe", output_shape=(None, 5)), 6 * 6 * 8 * 5),
    "EinsumDense of the last axis": (layers.EinsumDense("...x,xy->...y", output_shape=5), STEPS * 8 * 5),
    "EinsumDense of the first axis": (layers.EinsumDense("ab...,bc->ac...", output_shape=(5, None)), 6 * 5 * 6 * 8),
    "TimeDistributed": (layers.TimeDistributed(layers.Conv1D(5, 2)), 6 * 5 * 2 * 8 * 5),
    "TimeDistributed of Dense": (layers.TimeDistributed(layers.Dense(5)), STEPS * 8 * 5),
    "TimeDistributed of nothing": (layers.TimeDistributed(layers.MaxPooling1D(2)), 0),
    "SimpleRNN": (after(steps, layers.SimpleRNN(4)), STEPS * (8 * 4 + 4 * 4)),
    "LSTM": (after(steps, layers.LSTM(4, return_sequences=True)), STEPS * 4 * (8 * 4 + 4 * 4)),
    "GRU": (after(steps, layers.GRU(4)), STEPS * 3 * (8 * 4 + 4 * 4)),
}
NAMED = {
    "Attention": twice(layers.Attention(), steps),
    "AdditiveAttention": twice(layers.AdditiveAttention(), steps),
    "MultiHeadAttention": lambda x: layers.MultiHeadAttention(2, 4)(steps(x), steps(x)),
    "Dot": twice(layers.Dot((2, 2)), steps),
    "Bidirectional": after(steps, layers.Bidirectional(layers.LSTM(4))),
    "RNN": after(steps, layers.RNN(layers.StackedRNNCells([layers.LSTMCell(4), layers.GRUCell(3)]))),
    "ConvLSTM1D": layers.ConvLSTM1D(4, 2),
    "ConvLSTM2D": after(frames, layers.ConvLSTM2D(4, 2)),
    "ConvLSTM3D": after(layers.Reshape((2, 3, 3, 2, 8)), layers.ConvLSTM3D(3, 1)),
    "TimeDistributed": layers.TimeDistributed(keras.Sequential([layers.Dense(3)])),
    "Lambda": layers.Lambda(lambda x: x * 2),
    "SpectralNormalization": layers.SpectralNormalization(layers.Conv2D(4, 3)),
    "TFOpLambda": lambda x: tf.matmul(steps(x), steps(x), transpose_b=True),
}
# Bases, cells (tried in RNN) and layers of text and tables, which take no image; the first has nothing in front.
ELSEWHERE = frozenset(
    (
        *("InputLayer", "Layer", "Wrapper", "AbstractRNNCell", "SimpleRNNCell", "LSTMCell", "GRUCell"),
        *("StackedRNNCells", "DenseFeatures", "Hashing", "HashedCrossing", "IntegerLookup", "StringLookup"),
        *("TextVectorization", "RandomHeight", "RandomWidth"),
    )
)


def around(layer) -> keras.Model:
    image = keras.Input((SIDE, SIDE, 3), name="image")
    x = layer(layers.Conv2D(CHANNELS, 1, name="make")(image))
    return keras.Model(image, layers.Dense(2, name="head")(layers.Flatten(name="flat")(x)))


CASES = {name: (layer, 0) for name, layer in NOTHING.items()} | COUNTED | {f"{k}*": (v, None) for k, v in NAMED.items()}


def test_every_public_layer_class_is_tried():
    public = {value for name, value in vars(layers).items() if isinstance(value, type)}
    tried = {name.partition(" ")[0].strip("*") for name in CASES} | ELSEWHERE
    assert {cls.__name__ for cls in public if issubclass(cls, layers.Layer)} <= tried


@pytest.mark.parametrize(("layer", "macs"), CASES.values(), ids=CASES)
def test_layer_is_counted_by_hand_or_named_and_is_rebuilt_or_refused_in_one_line(layer, macs):
    model = around(layer)
    cost = measure_cost(model)
    head = 2 * model.get_layer("flat").output_shape[-1]
    assert cost.params == model.count_params()
    if macs is None:
        assert cost.macs is None
        assert len(cost.uncounted) == 1
        with pytest.raises(BudgetError, match=r"MACs of this model are not known: those of \S+ \(.*\) are not counted"):
            Budget(macs=0.5).limits(cost)
        assert Budget(params=0.5).limits(cost) == {"params": cost.params // 2}
    else:
        assert cost.macs == STEPS * 3 * CHANNELS + macs + head
    analysis = analyze_channels(model)
    keep = analysis.keep_vector({name: range(max(1, group.channels // 2)) for name, group in analysis.groups.items()})
    plan = ChannelPlan.of(analysis, keep, {})
    kind = type(model.layers[2]).__name__
    if kind in ("Lambda", "SpectralNormalization"):
        with pytest.raises(
            UnsupportedLayerError, match=rf"^Keras cannot rebuild \S+ its layers \S+ \({kind}\) [^\n]*$"
        ):
            remove_channels(model, plan)
    else:
        assert measure_cost(remove_channels(model, plan)) == analysis.cost_model.cost(keep)


def test_described_model_says_whose_macs_are_missing_and_what_is_known():
    model = around(NAMED["MultiHeadAttention"])
    analysis = analyze_channels(model)
    found = describe_model(analysis, model)
    assert found["summary"]["macs"] is None
    (named,) = found["summary"]["not_counted"]
    assert named.endswith("(MultiHeadAttention)")
    macs = {layer["class"]: layer["macs"] for layer in found["layers"]}
    assert macs == {"Conv2D": 864, "Reshape": 0, "MultiHeadAttention": None, "Flatten": 0, "Dense": 2 * STEPS * 8}
    plan = ChannelPlan.of(analysis, analysis.keep_vector({}), {})
    assert ChannelPlan.from_json(plan.to_json()) == plan
    assert describe_plan(analysis, model, plan)["after"] == {"macs": None, **plan.after.to_dict()}


def test_own_layer_is_not_counted_unless_its_rule_says_its_uses():
    class Project(layers.Layer):
        def call(self, inputs):
            return tf.matmul(inputs, inputs, transpose_b=True)

    assert measure_cost(around(Project(name="own"))).uncounted == ("own (Project)",)


def wrapped(inner, name="inner") -> keras.Model:
    image = keras.Input((SIDE, SIDE, CHANNELS))
    return keras.Model(image, inner(image), name=name)


def test_layer_shared_with_a_nested_model_is_one_layer():
    """tensorflow/model-optimization and Keras both rebuild it as two."""
    shared = layers.Conv2D(CHANNELS, 3, padding="same", name="shared")
    model = around(lambda x: wrapped(wrapped(shared), "outer")(shared(x)))
    assert measure_cost(model).params == model.count_params()
    assert measure_cost(model).macs == STEPS * (3 * CHANNELS + 2 * 9 * CHANNELS * CHANNELS + 2 * CHANNELS)
    analysis = analyze_channels(model)
    assert list(analysis.groups) == ["make"]  # what goes in and what comes out are tied
    assert analysis.groups["make"].members == ("make", "shared")
    plan = ChannelPlan.of(analysis, analysis.keep_vector({"make": range(4)}), {})
    with pytest.raises(
        UnsupportedLayerError, match=r"^shared and outer/inner/shared are one layer in two models, [^\n]*$"
    ):
        remove_channels(model, plan)


def test_weights_shared_by_two_layers_are_refused_by_name():
    dense = layers.Dense(CHANNELS, name="dense")
    with pytest.raises(UnsupportedLayerError, match=r"'\w+' and '\w+' have the same weight \S*kernel:0: give each"):
        measure_cost(around(lambda x: layers.TimeDistributed(dense)(dense(x))))


def test_layers_whose_paths_collide_are_refused_by_name():
    model = around(
        lambda x: wrapped(layers.Conv2D(CHANNELS, 1, name="b"), "a")(layers.Conv2D(CHANNELS, 1, name="a/b")(x))
    )
    with pytest.raises(UnsupportedLayerError, match=r"two layers of 'model_?[0-9]*' have the path 'a/b'"):
        analyze_channels(model)
    # Equal names in models beside one another do not collide.
    conv = [layers.Conv2D(CHANNELS, 1, name="conv") for _ in range(2)]
    assert {"a/conv", "b/conv"} <= set(
        layers_by_path(around(lambda x: wrapped(conv[0], "a")(wrapped(conv[1], "b")(x))))
    )
