"""Who is rounded, who shares a scale, and where ranges start."""

from __future__ import annotations

import numpy as np
import pytest

from cxr_compress.errors import CompressionError
from cxr_compress.keras2 import keras
from cxr_compress.lite.qat.fold import fold_batch_norms, read_steps
from cxr_compress.lite.qat.prepare import calibrate, share_ranges
from tests.lite.qat import nets

layers = keras.layers


def groups(model):
    steps = read_steps(fold_batch_norms(model).model)
    return [[steps.calls[number].name for number in group] for group in share_ranges(steps)]


def test_share_ranges_dense_block_has_one_scale_from_its_pool_to_its_last_concatenation():
    found = groups(nets.NETS["tiny_dense"]())

    # The pool of the stem hands its codes on to the block; each layer of the block adds its own to the same scale.
    assert ["conv1/relu", "conv2_block1_2_conv", "conv2_block2_2_conv"] in found
    # The transition's convolution, its mean and the layer of the second block.
    assert ["pool2_conv", "pool2_pool", "conv3_block1_2_conv"] in found
    named = [name for group in found for name in group]
    # What a ReLU follows is rounded behind it, once: the affine layer of a batch norm too.
    assert "conv2_block1_0_relu" in named
    assert not {"conv1/conv", "conv2_block1_0_bn", "conv2_block1_1_conv"} & set(named)
    assert not [name for name in named if name.endswith(("concat", "pad"))]


def test_share_ranges_sum_and_convolution_before_one_relu_are_rounded_behind_it():
    found = groups(nets.NETS["residual"]())
    named = [name for group in found for name in group]

    assert "first_add" not in named  # its ReLU is
    assert "second_add" in named  # a convolution reads it as it is
    assert all(len(group) == 1 for group in found)  # no concatenation, nothing to share


def test_share_ranges_result_that_two_layers_read_is_rounded_itself():
    image = keras.Input((8, 8, 3), name="image")
    stem = layers.Conv2D(4, 1, name="stem")(image)
    x = layers.Add(name="sum")([stem, layers.ReLU(name="relu")(stem)])

    assert groups(keras.Model(image, x)) == [["image"], ["stem"], ["relu"], ["sum"]]


def test_calibrate_gives_the_smallest_and_largest_value_of_every_result():
    model = nets.NETS["residual"]()
    images = nets.images(model, 40)  # more than are run at once
    found = calibrate(model, ["stem", "second_add"], images)

    for name, (low, high) in found.items():
        values = keras.Model(model.input, model.get_layer(name).output)(images).numpy()
        # Other batch sizes may sum up in another order: float32 rounding of some terms.
        assert (low, high) == pytest.approx((values.min(), values.max()), rel=1e-5)


def test_calibrate_infinite_activation_is_an_error_that_names_the_layer():
    model = nets.NETS["chain"]()
    layer = model.get_layer("logits")
    layer.bias.assign([0.0, np.nan, 0.0])
    with pytest.raises(CompressionError, match="the result of logits is NaN or infinite on the calibration images"):
        calibrate(model, ["b", "logits"], nets.images(model))
