"""Backbones by name: their size, their head, and that the rest of the package can work with each."""

from __future__ import annotations

import numpy as np
import pytest

from cxr_compress.errors import CompressionError
from cxr_compress.keras2 import keras
from cxr_compress.lite import convert
from cxr_compress.models import MODELS, build, register_architecture
from cxr_compress.models.architectures import describe_architectures
from cxr_compress.structured import analyze_channels
from tests.nets import batch, enliven

# Numbers of weights without the head, and the features that the head sees. DenseNet, ResNet50 and MobileNetV2: as
# tf_keras.applications count them; EfficientNet-Lite0: 4,694,024 of the published file less 1000 classes of 1281.
BODIES = {
    "chexnet": (7_037_504, 1024),
    "densenet169": (12_642_880, 1664),
    "resnet50": (23_587_712, 2048),
    "mobilenet_v2": (2_257_984, 1280),
    "efficientnet_lite0": (4_694_024 - 1_281_000, 1280),
    "tiny_chexnet": (257_856, 136),
}
STANDARD_LAYERS = (
    "Activation", "Add", "AveragePooling2D", "BatchNormalization", "Concatenate", "Conv2D", "Dense",
    "DepthwiseConv2D", "GlobalAveragePooling2D", "InputLayer", "MaxPooling2D", "ReLU", "ZeroPadding2D",
)  # fmt: skip
LARGE = pytest.mark.densenet


def marked(names):
    return [pytest.param(name, marks=() if name in SMALL else LARGE) for name in names]


SMALL = ("mobilenet_v2", "efficientnet_lite0", "tiny_chexnet")


@pytest.fixture(scope="module")
def lite0():
    return enliven(build("efficientnet_lite0", 3, (64, 64, 3)))


def test_register_architecture_twice_is_one_clear_error():
    with pytest.raises(CompressionError, match="the architecture 'chexnet' is registered twice: give one of the two"):
        register_architecture("chexnet", help="another one")


def test_register_architecture_of_ones_own_is_built_by_its_name():
    @register_architecture("mine", help="a network of one layer")
    def mine(num_classes, input_shape):
        inputs = keras.Input(input_shape)
        return keras.Model(inputs, keras.layers.Dense(num_classes, name="logits")(keras.layers.Flatten()(inputs)))

    try:
        assert build("mine", 2, (4, 4, 1)).output_shape == (None, 2)
        assert "mine: a network of one layer" in describe_architectures()
    finally:
        del MODELS["mine"]


@pytest.mark.parametrize("name", marked(BODIES))
def test_build_gives_plain_layers_of_the_published_size_that_end_in_logits(name):
    model = build(name, 3, (None, None, 3))
    body, features = BODIES[name]
    assert model.count_params() == body + 3 * (features + 1)
    assert model.output_shape == (None, 3)
    head = model.layers[-1]
    assert (head.name, type(head).__name__, head.activation) == ("logits", "Dense", keras.activations.linear)
    assert {type(layer).__name__ for layer in model.layers} <= set(STANDARD_LAYERS)
    norms = [layer for layer in model.layers if isinstance(layer, keras.layers.BatchNormalization)]
    assert {layer.momentum for layer in norms} == {0.9}


@pytest.mark.parametrize("name", marked(BODIES))
def test_build_every_model_can_be_analysed_and_only_its_ends_are_protected(name):
    model = build(name, 2, (64, 64, 1))
    analysis = analyze_channels(model)
    assert len(analysis.groups) >= 20
    assert set(analysis.protected) == {"image", "logits"}


@pytest.mark.parametrize("name", marked(BODIES))
def test_build_every_model_converts_to_integers(name):
    model = enliven(build(name, 2, (64, 64, 3)))
    made = convert(model, "int8", calibration=[batch(model, 16)], calibration_steps=16)
    # int8 holds a number per weight in a byte: float weights would take four.
    assert len(made.content) < 2 * model.count_params() + 400_000


def test_efficientnet_lite0_free_size_computes_what_the_fixed_size_does(lite0):
    free = build("efficientnet_lite0", 3, (None, None, 3))
    free.set_weights(lite0.get_weights())
    x = batch(lite0)
    expected = lite0(x).numpy()
    assert expected.std(axis=0).min() > 1e-3
    np.testing.assert_allclose(free(x).numpy(), expected, rtol=1e-4, atol=1e-5)
    assert free(batch(lite0)[:, :40, :50]).shape == (4, 3)


def test_efficientnet_lite0_adds_exactly_where_shapes_repeat(lite0):
    added = [layer.name for layer in lite0.layers if isinstance(layer, keras.layers.Add)]
    assert added == [f"block{number}_add" for number in (3, 5, 7, 8, 10, 11, 13, 14, 15)]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("vgg16", 3, (64, 64, 3)), "unknown model 'vgg16': choose one of chexnet, densenet169, resnet50"),
        (("efficientnet_lite0", 0, (64, 64, 3)), "num_classes must be at least 1, got 0"),
        (("mobilenet_v2", 3, (64, 64)), r"input_shape must be \(height, width, channels\)"),
        (("resnet50", 3, (31, 64, 3)), r"\(31, 64, 3\) is too small"),
    ],
)
def test_build_impossible_argument_is_one_clear_error(arguments, message):
    with pytest.raises(CompressionError, match=message):
        build(*arguments)
