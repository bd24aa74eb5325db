from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from cxr_compress.keras2 import keras
from cxr_compress.lite import QUANT_TYPES, SparsityCount, convert
from cxr_compress.lite.graph.constants import BIAS, DEPTHWISE, HEAD, find_heads
from cxr_compress.lite.graph.flatbuffer import read_graphs
from tests.lite import nets

layers = keras.layers


def plant_zeros(model: Any, name: str, count: int) -> None:
    """Set `count` weights of a kernel to exactly 0, in a fixed random order."""
    layer = model.get_layer(name)
    kernel, *rest = layer.get_weights()
    kernel.reshape(-1)[np.random.default_rng(0).permutation(kernel.size)[:count]] = 0.0
    layer.set_weights([kernel, *rest])


def sparsity_of(model: Any, quant_type: str) -> SparsityCount:
    return convert(model, quant_type, calibration=[nets.batch(16)]).audit.sparsity


@pytest.mark.parametrize("quant_type", QUANT_TYPES)
def test_sparsity_counts_the_zeros_that_were_planted(quant_type: str) -> None:
    model = nets.chain()
    plant_zeros(model, "first", 100)
    plant_zeros(model, "second", 576)
    plant_zeros(model, "logits", 60)  # the head: counts for nothing
    found = sparsity_of(model, quant_type)
    assert found.weights == 3 * 3 * 3 * 8 + 3 * 3 * 8 * 16
    per_layer = list(found.layers.values())
    assert [size for _, size in per_layer] == [216, 1152]
    if quant_type in ("none", "fp16"):
        assert [zeros for zeros, _ in per_layer] == [100, 576]
        assert found.fraction == (100 + 576) / (216 + 1152)
    else:
        # Rounding to 8 bits makes some small weights zero as well: at most those below half a step of 1/127.
        assert 100 <= per_layer[0][0] <= 110
        assert 576 <= per_layer[1][0] <= 610


def test_sparsity_of_int8_has_code_zero_where_the_weight_is_zero() -> None:
    model = nets.chain()
    plant_zeros(model, "second", 576)
    graph = read_graphs(convert(model, "int8", calibration=[nets.batch(16)]).content)[0]
    kernel = next(t for t in graph.tensors if t.values is not None and t.shape == (16, 3, 3, 8))
    assert len(kernel.scale) == 16  # one per channel
    assert set(kernel.zero_point) == {0}
    planted = model.get_layer("second").get_weights()[0].transpose(3, 0, 1, 2) == 0
    assert kernel.values is not None
    assert (kernel.values[planted] == 0).all()


def test_sparsity_leaves_out_depthwise_kernels_head_and_biases_and_lists_them() -> None:
    found = sparsity_of(nets.depthwise(), "int8")
    assert found.weights == 3 * 8 + 8 * 8
    assert sorted(found.excluded.values()) == sorted([BIAS] * 4 + [DEPTHWISE, HEAD])
    assert not set(found.layers) & set(found.excluded)


def test_sparsity_lists_the_batch_norm_that_could_not_fold() -> None:
    found = sparsity_of(nets.dense_block(), "none")
    assert found.weights == 3 * 3 * 3 * 8 + 3 * 3 * 8 * 8
    assert {"constant of MUL", "constant of ADD"} <= set(found.excluded.values())


def _two_layers(end: Any) -> Any:
    image = keras.Input((16, 16, 3))
    x = layers.Conv2D(8, 3, activation="relu", name="body")(image)
    return nets.settle(keras.Model(image, end(x)))


def _conv_then_reshape(x: Any) -> Any:
    """mean - conv 1x1 (4): head - reshape"""
    x = layers.GlobalAveragePooling2D(keepdims=True)(x)
    return layers.Reshape((4,))(layers.Conv2D(4, 1, name="head")(x))


def _class_activation_map(x: Any) -> Any:
    """conv 1x1 (4): head - mean"""
    return layers.GlobalAveragePooling2D()(layers.Conv2D(4, 1, name="head")(x))


def _two_heads(x: Any) -> Any:
    """mean -+- dense (3) -+- concat
    +- dense (1) -+
    """
    x = layers.GlobalAveragePooling2D()(x)
    return layers.Concatenate()([layers.Dense(3, name="head")(x), layers.Dense(1, name="head2")(x)])


@pytest.mark.parametrize(
    ("end", "heads"),
    [
        (_conv_then_reshape, {"CONV_2D"}),
        (_class_activation_map, {"CONV_2D"}),
        (_two_heads, {"FULLY_CONNECTED"}),
    ],
)
@pytest.mark.parametrize("quant_type", ["none", "fp16", "int8", "int8_float_io"])
def test_find_heads_looks_through_what_follows_the_head(end: Any, heads: set[str], quant_type: str) -> None:
    made = convert(_two_layers(end), quant_type, calibration=[nets.batch(16)])
    graph = read_graphs(made.content)[0]
    assert {graph.operators[index].kind for index in find_heads(graph)} == heads
    assert made.audit.sparsity.weights == 3 * 3 * 3 * 8  # the body, without the head


def test_find_heads_of_a_network_that_ends_in_a_sum_of_features_finds_none() -> None:
    image = keras.Input((16, 16, 3))
    first = layers.Conv2D(8, 3, padding="same")(image)
    second = layers.Conv2D(8, 3, padding="same")(first)
    model = nets.settle(keras.Model(image, layers.GlobalAveragePooling2D()(layers.Add()([first, second]))))
    graph = read_graphs(convert(model, "none").content)[0]
    assert find_heads(graph) == set()


def test_sparsity_of_a_network_of_its_head_alone_is_zero() -> None:
    found = sparsity_of_linear()
    assert (found.zeros, found.weights, found.fraction) == (0, 0, 0.0)


def sparsity_of_linear() -> SparsityCount:
    return convert(nets.linear(), "none").audit.sparsity
