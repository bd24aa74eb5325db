"""XNNPACK's sparse path: which graphs may run on it, the same answer as TF-MOT's own policy, the reasons per layer."""

from __future__ import annotations

import re

import pytest

from cxr_compress.keras2 import keras
from cxr_compress.models import tiny_chexnet
from cxr_compress.models.tfmot import sparsity_api
from cxr_compress.sparsity import XnnpackSparse, xnnpack_sparse
from tests import nets

layers = keras.layers

STEM_RULE = "the sparse path starts with a 3x3 convolution, stride 2, VALID, on 3 channels after ZeroPadding2D(1)"


def stem(image):
    x = layers.Conv2D(8, 3, strides=2, use_bias=False, name="stem")(layers.ZeroPadding2D(1, name="pad")(image))
    return layers.ReLU(6.0, name="relu")(layers.BatchNormalization(name="bn")(x))


def head(x, keepdims=True):
    x = layers.GlobalAveragePooling2D(keepdims=keepdims, name="gap")(x)
    return layers.Dense(2, name="logits")(layers.Flatten(name="flat")(x))


def mobile(middle=None, start=stem, end=head, channels=3) -> keras.Model:
    """A MobileNet in small: everything in it runs sparse, but for what a test puts into its middle.

    image 16x16 -> pad -> stem 3x3/2 (8) -> BN -> relu6 -> depthwise 3x3 -> expand 1x1 (16) -+-> Multiply -> middle
    middle -> project 1x1 (8) -> GAP -> flat -> logits            +-> GAP -> gate 1x1 -> ----+
    """
    image = keras.Input((16, 16, channels), name="image")
    x = layers.DepthwiseConv2D(3, padding="same", name="depthwise")(start(image))
    x = layers.Conv2D(16, 1, activation="relu", name="expand")(x)
    gate = layers.Conv2D(16, 1, name="gate")(layers.GlobalAveragePooling2D(keepdims=True, name="squeeze")(x))
    x = layers.Multiply(name="scale")([x, layers.Activation("sigmoid", name="sigmoid")(gate)])
    x = x if middle is None else middle(x)
    return nets.enliven(keras.Model(image, end(layers.Conv2D(8, 1, name="project")(x)), name="mobile"))


def tfmot_accepts(model) -> bool:
    """The word of TF-MOT's policy."""
    try:
        sparsity_api().PruneForLatencyOnXNNPack().ensure_model_supports_pruning(model)
    except ValueError:
        return False
    return True


def test_xnnpack_sparse_network_of_its_kind_is_eligible_and_tfmot_agrees():
    model = mobile()
    found = xnnpack_sparse(model)
    assert found.reasons == {}
    assert found.eligible
    assert tfmot_accepts(model)
    policy = sparsity_api().PruneForLatencyOnXNNPack()
    assert set(found.sparse_layers) == {layer.name for layer in model.layers if policy.allow_pruning(layer)}
    assert found.weights == 8 * 16 + 16 * 16 + 16 * 8


@pytest.mark.parametrize(("zeros", "enough"), [(0, False), (341, False), (342, True)])
def test_xnnpack_sparse_needs_more_than_two_thirds_of_zeros(zeros, enough):
    model = mobile()  # 512 weights in its 1x1 kernels: 341.3 are two thirds
    for name in ("gate", "project", "expand"):
        kernel = model.get_layer(name).kernel
        values = kernel.numpy().ravel()
        values[: min(zeros, values.size)] = 0
        zeros -= min(zeros, values.size)
        kernel.assign(values.reshape(kernel.shape))
    found = xnnpack_sparse(model)
    assert found.enough_zeros == enough
    assert ("can run this graph" in found.sentence) == enough
    assert ("more than two thirds are needed" in found.sentence) == (not enough)


def test_xnnpack_sparse_exactly_two_thirds_are_not_enough():
    assert not XnnpackSparse({}, ("expand",), weights=3, zeros=2).enough_zeros


def two_ends(x):
    return [head(x), layers.Dense(1, name="side")(layers.Flatten(name="side_flat")(x))]


BROKEN = {
    "concat": (
        {"middle": lambda x: layers.Concatenate(name="joined")([x, x])},
        {"joined": "Concatenate is no layer of the sparse path"},
    ),
    "pool": (
        {"middle": layers.MaxPooling2D(2, name="pool")},
        {"pool": "MaxPooling2D is no layer of the sparse path"},
    ),
    "wide_kernel": (
        {"middle": layers.Conv2D(16, 3, padding="same", name="wide")},
        {"wide": r"only 1x1 .* this one is 3x3 with strides \(1, 1\)"},
    ),
    "strided": (
        {"middle": layers.Conv2D(16, 1, strides=2, name="strided")},
        {"strided": r"this one is 1x1 with strides \(2, 2\)"},
    ),
    "depthwise_stride_without_padding": (
        {"middle": layers.DepthwiseConv2D(3, strides=2, padding="same", name="down")},
        {"down": "a depthwise kernel must be 3x3 or 5x5"},
    ),
    "depthwise_seven": (
        {"middle": layers.DepthwiseConv2D(7, padding="same", name="seven")},
        {"seven": "a depthwise kernel must be 3x3 or 5x5"},
    ),
    "normalization_of_rows": (
        {"middle": layers.BatchNormalization(axis=1, name="rows")},
        {"rows": r"normalizes axis \[1\]"},
    ),
    "tanh": ({"middle": layers.Activation("tanh", name="tanh")}, {"tanh": "the activation tanh is none of relu"}),
    "nearest": (
        {"middle": layers.UpSampling2D(2, name="up")},
        {"up": "nearest resizing, only bilinear runs sparse"},
    ),
    "function": ({"middle": lambda x: x / 2}, {"tf.math.truediv": "the function .* is none of the sparse path's"}),
    "gray": ({"channels": 1}, {"stem": STEM_RULE[:60]}),
    "stem_same": (
        {"start": layers.Conv2D(8, 3, strides=2, padding="same", name="stem")},
        {"stem": STEM_RULE[:60]},
    ),
    "stem_seven": (
        {"start": lambda x: layers.Conv2D(8, 7, strides=2, name="stem")(layers.ZeroPadding2D(3)(x))},
        {"stem": STEM_RULE[:60]},
    ),
    "no_mean": (
        {"end": lambda x: layers.Dense(2, name="logits")(layers.Flatten(name="flat")(x))},
        {"logits": r"an output on whose way there is none: the sparse path ends in GlobalAveragePooling2D"},
    ),
    "second_output": ({"end": two_ends}, {"side": "an output on whose way there is none"}),
}


@pytest.mark.parametrize("kind", BROKEN)
def test_xnnpack_sparse_every_broken_condition_names_its_layer_and_tfmot_refuses_too(kind):
    change, expected = BROKEN[kind]
    model = mobile(**change)
    found = xnnpack_sparse(model)
    assert not found.eligible
    for name, reason in expected.items():
        assert any(layer.startswith(name) and re.search(reason, text) for layer, text in found.reasons.items())
    assert not tfmot_accepts(model)
    assert "zeros give it no speed" in found.sentence


ALLOWED = {
    "depthwise_stride_after_padding": lambda x: layers.DepthwiseConv2D(5, strides=2)(layers.ZeroPadding2D(2)(x)),
    "bilinear": layers.UpSampling2D(2, interpolation="bilinear"),
    "sum_of_functions": lambda x: x * 2.0 + 1.0,
    "residual": lambda x: layers.Add()([x, layers.LeakyReLU()(layers.Dropout(0.1)(x))]),
}


@pytest.mark.parametrize("kind", ALLOWED)
def test_xnnpack_sparse_what_the_path_may_contain_is_accepted_as_by_tfmot(kind):
    model = mobile(ALLOWED[kind])
    assert xnnpack_sparse(model).reasons == {}
    assert tfmot_accepts(model)


def test_xnnpack_sparse_is_stricter_than_the_policy_where_the_runtime_is():
    flat = mobile(end=lambda x: head(x, keepdims=False))
    assert xnnpack_sparse(flat).reasons["gap"].endswith("keepdims is False")
    fused = mobile(layers.Conv2D(16, 1, activation="tanh", name="fused"))
    assert list(xnnpack_sparse(fused).reasons) == ["fused"]
    assert tfmot_accepts(flat)
    assert tfmot_accepts(fused)


@pytest.mark.parametrize("name", nets.SMALL_NETS)
def test_xnnpack_sparse_agrees_with_tfmot_on_every_small_network(name):
    model = nets.SMALL_NETS[name]()
    assert xnnpack_sparse(model).eligible == tfmot_accepts(model)


def test_xnnpack_sparse_densenet_is_refused_with_a_reason_for_every_layer_in_the_way():
    model = tiny_chexnet(3)
    found = xnnpack_sparse(model)
    assert not tfmot_accepts(model)
    concats = [layer.name for layer in model.layers if isinstance(layer, layers.Concatenate)]
    pools = [layer.name for layer in model.layers if isinstance(layer, (layers.MaxPooling2D, layers.AveragePooling2D))]
    assert concats
    assert pools
    assert set(concats + pools) < set(found.reasons)
    first = next(layer for layer in model.layers if isinstance(layer, layers.Conv2D))
    assert found.reasons[first.name] == STEM_RULE
    assert found.sentence.startswith(f"XNNPACK's sparse kernels cannot run this graph ({first.name}: the sparse path")


def test_xnnpack_sparse_nested_model_is_named_as_what_nobody_looks_into():
    inner = keras.Sequential([layers.Conv2D(16, 1, input_shape=(8, 8, 16))], name="inner")
    assert xnnpack_sparse(mobile(inner)).reasons == {
        "inner": "is a model within the model, which nobody looks into: rebuild it flat"
    }
