"""What is read of Keras layers by short cuts, against what Keras itself says of them."""

from __future__ import annotations

import pytest

from cxr_compress.keras2 import keras
from cxr_compress.models.keras_graph import _ASKED_FOR, LayerConfig, layers_by_path, weight_shapes
from cxr_compress.models.layer_traits import LAYERS
from cxr_compress.structured import analyze_channels
from tests import nets
from tests.nets_families import FAMILIES

layers = keras.layers
KEYS = sorted(_ASKED_FOR)


def own_function(x):
    return x * 2.0


def relu(x):
    """Not Keras's, in spite of its name."""
    return x


def compared(layer):
    """What the short cut says of all keys that rules ask for, and what the config does."""
    config, quick = layer.get_config(), LayerConfig(layer)
    absent = object()
    found = {key: quick.get(key, absent) for key in KEYS}
    assert {key: key in quick for key in KEYS} == {key: key in config for key in KEYS}
    for key in set(KEYS) & set(config):
        assert quick[key] == config[key]
    return found, {key: config.get(key, absent) for key in KEYS}


IMAGE, SIGNAL, VOLUME, VECTOR = (8, 8, 4), (8, 4), (8, 8, 8, 4), (4,)
ODD = {
    "conv strides": (IMAGE, lambda: layers.Conv2D(4, 3, strides=2)),
    "conv dilated": (IMAGE, lambda: layers.Conv2D(4, 3, dilation_rate=2, padding="same", use_bias=False)),
    "conv grouped": (IMAGE, lambda: layers.Conv2D(4, 3, groups=2, activation="relu")),
    "conv channels first": (IMAGE, lambda: layers.Conv2D(4, 3, data_format="channels_first")),
    "conv layer as activation": (IMAGE, lambda: layers.Conv2D(4, 3, activation=layers.LeakyReLU(0.1))),
    "conv layer with weights as activation": (IMAGE, lambda: layers.Conv2D(4, 3, activation=layers.PReLU())),
    "conv own activation": (IMAGE, lambda: layers.Conv2D(4, 3, activation=own_function)),
    "conv borrowed name": (IMAGE, lambda: layers.Conv2D(4, 3, activation=relu)),
    "conv no activation": (IMAGE, lambda: layers.Conv2D(4, 3, activation=None)),
    "conv frozen": (IMAGE, lambda: layers.Conv2D(4, 3, trainable=False)),
    "conv regularized": (IMAGE, lambda: layers.Conv2D(4, 3, kernel_regularizer="l2", bias_constraint="non_neg")),
    "conv 1d causal": (SIGNAL, lambda: layers.Conv1D(4, 3, padding="causal")),
    "conv 3d": (VOLUME, lambda: layers.Conv3D(4, 3, strides=(1, 2, 2))),
    "transpose 1d": (SIGNAL, lambda: layers.Conv1DTranspose(4, 3, strides=2)),
    "transpose 2d": (IMAGE, lambda: layers.Conv2DTranspose(4, 3, strides=2, output_padding=1)),
    "transpose 3d": (VOLUME, lambda: layers.Conv3DTranspose(4, 3)),
    "depthwise 1d": (SIGNAL, lambda: layers.DepthwiseConv1D(3, depth_multiplier=2)),
    "depthwise 2d": (IMAGE, lambda: layers.DepthwiseConv2D(3, depth_multiplier=2, use_bias=False, activation="swish")),
    "separable 1d": (SIGNAL, lambda: layers.SeparableConv1D(4, 3, strides=2)),
    "separable 2d": (IMAGE, lambda: layers.SeparableConv2D(4, 3, depth_multiplier=3, activation="gelu")),
    "dense": (VECTOR, lambda: layers.Dense(4)),
    "dense softmax": (VECTOR, lambda: layers.Dense(4, activation="softmax", use_bias=False)),
    "dense on a map": (IMAGE, lambda: layers.Dense(4, activation=own_function)),
    "activation": (IMAGE, lambda: layers.Activation("hard_sigmoid")),
    "activation of a layer": (IMAGE, lambda: layers.Activation(layers.ELU())),
    "activation none": (IMAGE, lambda: layers.Activation(None)),
    "batch norm": (IMAGE, layers.BatchNormalization),
    "batch norm axis": (IMAGE, lambda: layers.BatchNormalization(axis=1, scale=False)),
    "batch norm frozen": (IMAGE, lambda: layers.BatchNormalization(trainable=False)),
    "batch norm renorm": (IMAGE, lambda: layers.BatchNormalization(renorm=True)),
    "layer norm": (IMAGE, layers.LayerNormalization),
    "layer norm axes": (IMAGE, lambda: layers.LayerNormalization(axis=[1, -1])),
    "group norm": (IMAGE, lambda: layers.GroupNormalization(groups=2)),
    "group norm of one": (IMAGE, lambda: layers.GroupNormalization(groups=-1)),
    "normalization": (IMAGE, lambda: layers.Normalization(mean=1.0, variance=2.0)),
    "normalization fitted": (IMAGE, lambda: layers.Normalization(axis=-1)),
    "prelu": (IMAGE, lambda: layers.PReLU(shared_axes=[1, 2])),
    "spatial dropout": (IMAGE, lambda: layers.SpatialDropout2D(0.1, data_format="channels_first")),
    "pool": (IMAGE, lambda: layers.MaxPooling2D(2, strides=1, padding="same")),
    "global pool": (IMAGE, lambda: layers.GlobalAveragePooling2D(data_format="channels_last")),
    "pad": (IMAGE, lambda: layers.ZeroPadding2D(1)),
    "softmax axes": (IMAGE, lambda: layers.Softmax(axis=[1, 2])),
    "reshape": (IMAGE, lambda: layers.Reshape((-1, 4))),
    "permute": (IMAGE, lambda: layers.Permute((2, 1, 3))),
    "flatten": (IMAGE, layers.Flatten),
    "lstm": (SIGNAL, lambda: layers.LSTM(4)),
    "both ways": (SIGNAL, lambda: layers.Bidirectional(layers.GRU(4))),
    "each step": (SIGNAL, lambda: layers.TimeDistributed(layers.Dense(4))),
    "attention": (SIGNAL, layers.Attention),
}


@pytest.mark.parametrize(("shape", "make"), ODD.values(), ids=ODD)
@pytest.mark.parametrize("built", [False, True], ids=["unbuilt", "built"])
def test_layer_config_odd_layer_equals_get_config(shape, make, built):
    layer = make()
    if built:
        layer.build([(None, *shape)] * 2 if isinstance(layer, layers.Attention) else (None, *shape))
    found, expected = compared(layer)
    assert found == expected
    assert weight_shapes(layer) == tuple(weight.shape for weight in layer.get_weights())


@pytest.mark.parametrize("build", {**nets.SMALL_NETS, **FAMILIES}.values(), ids={**nets.SMALL_NETS, **FAMILIES})
def test_layer_config_every_layer_of_a_net_equals_get_config(build):
    for layer in layers_by_path(build()).values():
        found, expected = compared(layer)
        assert found == expected
        assert weight_shapes(layer) == tuple(weight.shape for weight in layer.get_weights())


def test_layer_config_odd_layers_cover_every_class_with_a_short_cut():
    assert {type(make()).__name__ for _, make in ODD.values()} >= {
        name for name, traits in LAYERS.items() if traits.attributes
    }


def test_layer_config_whole_is_the_config():
    layer = layers.Conv2D(4, 3, name="conv")
    assert dict(LayerConfig(layer)) == layer.get_config()
    assert len(LayerConfig(layer)) == len(layer.get_config())
    assert LayerConfig(layer)["filters"] == 4
    with pytest.raises(KeyError, match="depth_multiplier"):
        LayerConfig(layer)["depth_multiplier"]


def test_layer_config_hot_entries_do_not_serialize(monkeypatch):
    layer = layers.Conv2D(4, 3, activation="relu")
    monkeypatch.setattr(layer, "get_config", lambda: pytest.fail("the whole config was read"))
    assert [LayerConfig(layer).get(key) for key in ("activation", "groups", "depth_multiplier")] == ["relu", 1, None]


def test_analyze_subclass_with_a_config_of_its_own_is_asked_for_it():
    """Its attributes say nothing of its config: the MACs are counted by what `get_config` says."""

    class Conv2D(layers.Conv2D):
        def get_config(self):
            return {**super().get_config(), "data_format": "channels_first"}

    image = keras.Input((6, 8, 3))
    x = Conv2D(5, 1, name="own")(image)
    own = keras.Model(image, layers.Dense(2, name="head")(layers.Flatten()(x)))
    # (8, 5) positions by the config's reading of (6, 8, 5), (6, 8) by the attribute's.
    assert analyze_channels(own).baseline.macs == 8 * 5 * (3 * 5) + 6 * 8 * 5 * 2


def test_weight_shapes_lists_of_layers_and_weights_assigned_later_are_seen():
    layer = layers.Dense(4)
    layer.build((None, 3))
    held = layers.Dense(2)
    held.build((None, 5))
    layer.extra = [held]
    assert weight_shapes(layer) == tuple(weight.shape for weight in layer.get_weights()) == ((3, 4), (4,), (5, 2), (2,))
