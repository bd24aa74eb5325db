"""MACs counted on the operators of a file, against those counted on the layers it was made of."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from cxr_compress.keras2 import keras
from cxr_compress.lite import convert
from cxr_compress.lite.graph.flatbuffer import schema, to_bytes, to_object
from cxr_compress.lite.graph.macs import count_macs
from cxr_compress.structured import measure_cost
from tests import nets

layers = keras.layers


def counted(model: keras.Model, quant_type: str = "none") -> int | None:
    images = [np.random.default_rng(0).normal(size=(16, *model.input_shape[1:])).astype(np.float32)]
    return count_macs(convert(model, quant_type, calibration=images, calibration_steps=16).content)


@pytest.mark.parametrize("net", [nets.chain, nets.depthwise, nets.dense_block])
def test_macs_of_a_file_are_those_of_its_layers(net: Callable[[], keras.Model]) -> None:
    model = net()
    assert counted(model) == measure_cost(model).macs


def test_macs_are_the_same_in_int8_and_fewer_of_a_narrower_model() -> None:
    model = nets.residual()
    assert counted(model, "int8") == counted(model) == measure_cost(model).macs
    image = keras.Input((8, 8, 3))
    widths = [counted(keras.Model(image, layers.Conv2D(width, 3, name="c")(image))) for width in (4, 8)]
    assert widths == [6 * 6 * 27 * 4, 6 * 6 * 27 * 8]


def test_macs_of_transposed_convolutions_and_of_products() -> None:
    image = keras.Input((4, 4, 3), name="image")
    wide = layers.Conv2DTranspose(5, 2, strides=2, padding="same", name="up")(image)
    assert counted(keras.Model(image, wide)) == 4 * 4 * 3 * (2 * 2 * 5)
    rows = layers.Reshape((6, 8))(image)
    for axes, macs in (((1, 1), 8 * 8 * 6), ((2, 2), 6 * 6 * 8)):
        product = layers.Flatten()(layers.Dot(axes)([rows, rows]))
        assert counted(keras.Model(image, product)) == macs


def test_macs_are_unknown_where_an_operator_is() -> None:
    model = to_object(convert(nets.chain(), "none").content)
    assert count_macs(to_bytes(model)) is not None
    code = model.operatorCodes[0]
    code.builtinCode, code.deprecatedBuiltinCode = schema().BuiltinOperator.CUSTOM, schema().BuiltinOperator.CUSTOM
    code.customCode = b"FlexErf"
    assert count_macs(to_bytes(model)) is None
