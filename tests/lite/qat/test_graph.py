"""What quantization-aware training refuses, by name and in one line."""

from __future__ import annotations

import pytest

from cxr_compress.errors import UnsupportedLayerError
from cxr_compress.keras2 import keras
from cxr_compress.lite.qat.fold import read_steps
from tests import nets as all_nets
from tests import nets_families
from tests.lite import nets as lite_nets

layers = keras.layers


def behind(*chain):
    """image -> the layers one after the other."""
    image = x = keras.Input((8, 8, 3), name="image")
    for layer in chain:
        x = layer(x)
    return keras.Model(image, x)


def three_summed():
    image = keras.Input((8, 8, 3))
    return keras.Model(image, layers.Add(name="sum")([image, image, image]))


REFUSED = {
    "shared": (all_nets.shared_layer, r"both \(Conv2D: called more than once\)"),
    "shared_model": (nets_families.siamese, r"tower/t \(Conv2D: called more than once\)"),
    "unknown": (all_nets.sequential, r"p_re_lu\w* \(PReLU: no int8 rule for this type\): rebuild the model without"),
    "operator": (nets_families.mobilenet_v3, r"tf\.__operators__\.add\w* \(TFOpLambda: no int8 rule"),
    "nested": (nets_families.convnext, r"stem/layer_norm\w* \(LayerNormalization.*, and \d+ more: "),
    "probabilities": (lambda: lite_nets.ends_in("sigmoid"), r"activation sigmoid, .* has to end in logits"),
    "activation": (lambda: behind(layers.Activation("swish", name="s")), r"s \(Activation: activation swish, int8"),
    "leaky": (lambda: behind(layers.ReLU(negative_slope=0.1, name="r")), r"r \(ReLU: neither ReLU nor ReLU6\)"),
    "norm_axis": (lambda: behind(layers.BatchNormalization(axis=1, name="n")), r"n \(.*: normalizes another axis"),
    "three": (three_summed, r"sum \(Add: 3 tensors: add two at a time\)"),
    "half": (
        lambda: behind(layers.Conv2D(2, 1, dtype="mixed_float16", name="c")),
        r"c \(.*: computes in mixed_float16",
    ),
    "transposed": (
        lambda: behind(layers.Conv2DTranspose(2, 3, name="t")),
        r"t \(Conv2DTranspose: no int8 rule for this type\)",
    ),
    "group": (
        lambda: behind(layers.Conv2D(4, 1), layers.GroupNormalization(2, name="g")),
        r"g \(GroupNormalization: no",
    ),
    "scaled_vector": (
        lambda: behind(layers.GlobalAveragePooling2D(), layers.Rescaling(2.0, name="s")),
        r"s \(Rescaling: scales a tensor of 2 axes",
    ),
    "channels": (lambda: behind(layers.Conv2D(2, 1, data_format="channels_first", name="c")), "channels come first"),
    "outputs": (all_nets.two_outputs, "expected one input and one output, got 1 and 2"),
    "subclassed": (keras.Model, "expected a functional or built Sequential Keras model, got Model"),
}


@pytest.mark.parametrize(("build", "message"), REFUSED.values(), ids=REFUSED)
def test_read_steps_unsupported_model_is_refused_in_one_line(build, message):
    model = build()
    with pytest.raises(UnsupportedLayerError, match=message) as error:
        read_steps(model)
    assert "\n" not in str(error.value)


def test_read_steps_layer_without_weights_called_twice_becomes_two_steps():
    image, relu = keras.Input((8, 8, 3), name="image"), layers.ReLU(name="relu")
    steps = read_steps(keras.Model(image, relu(layers.Conv2D(2, 1, name="c")(relu(image)))))

    assert [(step.name, step.inputs) for step in steps.calls] == [
        ("image", ()),
        ("relu", (0,)),
        ("c", (1,)),
        ("relu_call2", (2,)),
    ]
    assert steps.output == 3
