"""Averages as depthwise convolutions: the same numbers, from kernels that int8 has."""

from __future__ import annotations

import numpy as np
import pytest

from cxr_compress.device.runner import Runner
from cxr_compress.keras2 import keras
from cxr_compress.lite import convert
from cxr_compress.lite.freeze import freeze
from cxr_compress.lite.graph.flatbuffer import read_graphs
from cxr_compress.lite.int8.pooling import average_by_convolution
from cxr_compress.lite.lowering import lower
from tests import nets

layers = keras.layers


def pooled(**pool) -> keras.Model:
    """image -> stem(8) -> average pooling as given -> logits(3)."""
    image = keras.Input((12, 12, 3), name="image")
    x = layers.AveragePooling2D(**pool)(nets.conv_bn(image, 8, "stem"))
    return nets.enliven(keras.Model(image, layers.Dense(3, name="logits")(layers.Flatten()(x))))


def kinds(content: bytes) -> list[str]:
    return [operator.kind for operator in read_graphs(content)[0].operators]


@pytest.mark.parametrize("pool", [{"pool_size": 2}, {"pool_size": (2, 3)}, {"pool_size": 3, "strides": 2}])
def test_average_by_convolution_gives_the_same_numbers(pool):
    model = pooled(**pool)
    content = lower(freeze(model), "none")
    edited = average_by_convolution(content)
    assert "AVERAGE_POOL_2D" in kinds(content)
    assert "AVERAGE_POOL_2D" not in kinds(edited)
    assert kinds(edited).count("DEPTHWISE_CONV_2D") == 1
    assert len(kinds(edited)) == len(kinds(content))
    images = nets.batch(model, images=4)
    before, after = Runner(content)(images), Runner(edited)(images)
    # Up to nine float32 products in another order: some 2**-24 of the output's spread, times the sum behind it.
    assert np.abs(after - before).max() < 1e-5 * before.std()
    other = Runner(average_by_convolution(lower(freeze(pooled(pool_size=4)), "none")))(images)
    assert np.abs(other - before).max() > 1e-2 * before.std()


@pytest.mark.parametrize("pool", [{"pool_size": 3, "strides": 2, "padding": "same"}, {"pool_size": 6}])
def test_average_with_padding_or_of_many_places_stays(pool):
    """A mean at the border is over fewer places; of 36 places no fast kernel knows."""
    content = lower(freeze(pooled(**pool)), "none")
    assert average_by_convolution(content) == content


def test_average_in_an_int8_file_is_a_convolution_whose_codes_differ_by_one_at_most():
    image = keras.Input((12, 12, 3), name="image")
    x = layers.AveragePooling2D(2, name="pool")(nets.conv_bn(image, 8, "stem"))
    model = nets.enliven(keras.Model(image, layers.Conv2D(3, 6, name="logits")(x)))
    # Ends where the pooling does: what comes behind would hide or spread a code.
    ended = keras.Model(image, layers.Flatten()(x))
    images = nets.batch(model, images=32)
    content = convert(ended, "int8", calibration=[images], compare=False).content
    graph = read_graphs(content)[0]
    assert "DEPTHWISE_CONV_2D" in kinds(content)
    assert "AVERAGE_POOL_2D" not in kinds(content)
    kernel = graph.tensors[next(o for o in graph.operators if o.kind == "DEPTHWISE_CONV_2D").inputs[1]]
    assert kernel.values is not None
    assert (kernel.values == 127).all()
    exact = np.asarray(ended(images))
    step = next(tensor.scale[0] for tensor in graph.tensors if tensor.index == graph.outputs[0])
    # The convolution before rounds once, its mean of four again, and the weights of 8 bits add their own.
    assert np.abs(Runner(content)(images) - exact).max() < 6 * step
    assert np.abs(Runner(content)(images) - exact[::-1]).max() > 20 * step
