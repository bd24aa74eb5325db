"""Counting zeros: over the right kernels, with a reason for everything left out, and what they do to a file's size."""

from __future__ import annotations

import numpy as np
import pytest

from cxr_compress.errors import CompressionError
from cxr_compress.keras2 import keras
from cxr_compress.models import tiny_chexnet
from cxr_compress.sparsity import measure_sparsity, size_statement

layers = keras.layers


def mixed_net() -> keras.Model:
    """Every kind of layer that weight pruning meets.

    image 8x8x3 -> conv -> BN -> depthwise -> separable -> body[ conv -> relu ] -> GAP -> dense -> head -> sigmoid
    """
    image = keras.Input((8, 8, 3), name="image")
    x = layers.Conv2D(4, 3, name="conv")(image)
    x = layers.BatchNormalization(name="bn")(x)
    x = layers.DepthwiseConv2D(3, padding="same", use_bias=False, name="depthwise")(x)
    x = layers.SeparableConv2D(6, 3, padding="same", name="separable")(x)
    body = keras.Sequential([layers.Conv2D(5, 1, use_bias=False, input_shape=(6, 6, 6), name="conv"), layers.ReLU()])
    body._name = "body"
    x = layers.GlobalAveragePooling2D(name="gap")(body(x))
    x = layers.Dense(7, use_bias=False, name="dense")(x)
    x = layers.Activation("sigmoid", name="probability")(layers.Dense(2, name="head")(x))
    return keras.Model(image, x, name="mixed")


def test_measure_sparsity_counts_kernels_and_names_the_rest():
    model = mixed_net()
    kernel, bias = model.get_layer("conv").get_weights()
    kernel[..., 0] = 0
    model.get_layer("conv").set_weights([kernel, bias])
    report = measure_sparsity(model)
    counted = {layer.name: (layer.weights, layer.zeros) for layer in report.layers}
    assert counted == {
        "conv": (3 * 3 * 3 * 4, 3 * 3 * 3),
        "separable": (4 * 6, 0),
        "body/conv": (6 * 5, 0),
        "dense": (5 * 7, 0),
    }
    assert report.weights == 108 + 24 + 30 + 35
    assert report.zeros == 27
    assert report.total == 27 / 197
    assert report.layers[0].sparsity == 0.25
    assert {name: reason.split()[0] for name, reason in report.excluded.items()} == {
        "conv: bias": "a",
        "bn": "batch",
        "depthwise": "depthwise",
        "separable: depthwise_kernel": "depthwise",
        "separable: bias": "a",
        "head": "makes",
    }


def test_measure_sparsity_head_is_found_through_layers_without_kernels():
    image = keras.Input((8, 8, 3))
    x = layers.Conv2D(4, 3, name="first")(image)
    x = layers.Conv2D(2, 1, name="head")(x)
    x = layers.BatchNormalization()(x)
    model = keras.Model(image, layers.Reshape((2,))(layers.GlobalAveragePooling2D()(x)))
    assert [layer.name for layer in measure_sparsity(model).layers] == ["first"]


def test_measure_sparsity_every_output_has_its_heads():
    image = keras.Input((8, 8, 3))
    trunk = layers.Conv2D(4, 3, name="trunk")(image)
    pooled = layers.GlobalAveragePooling2D()(trunk)
    left, right = layers.Dense(2, name="left")(pooled), layers.Dense(2, name="right")(pooled)
    alone = layers.Dense(1, name="alone")(pooled)
    model = keras.Model(image, [layers.Add()([left, right]), alone])
    report = measure_sparsity(model)
    assert [layer.name for layer in report.layers] == ["trunk"]
    assert {"left", "right", "alone"} < set(report.excluded)


def test_measure_sparsity_head_inside_a_nested_model_is_found():
    head = keras.Sequential(
        [layers.Dense(5, input_shape=(4,), name="hidden"), layers.Dense(1, name="logits")], name="top"
    )
    image = keras.Input((4,))
    report = measure_sparsity(keras.Model(image, layers.Activation("sigmoid")(head(layers.Dense(4, name="in")(image)))))
    assert [layer.name for layer in report.layers] == ["in", "top/hidden"]
    assert "top/logits" in report.excluded


def test_measure_sparsity_nested_model_without_a_kernel_is_passed_through():
    calibrate = keras.Sequential([layers.Activation("sigmoid", input_shape=(2,))], name="calibrate")
    image = keras.Input((4,))
    x = layers.Dense(3, name="hidden")(image)
    report = measure_sparsity(keras.Model(image, calibrate(layers.Dense(2, name="logits")(x))))
    assert [layer.name for layer in report.layers] == ["hidden"]


def test_measure_sparsity_subclass_of_a_known_layer_is_left_out_with_its_name():
    class Normed(layers.Dense):
        """Uses its kernel in a way that zeros might break."""

    model = keras.Sequential([Normed(3, input_shape=(4,), name="normed"), layers.Dense(2)])
    report = measure_sparsity(model)
    assert report.layers == ()
    assert report.total == 0.0
    assert report.excluded["normed"] == "weight pruning knows no kernel of Normed layers"


def test_measure_sparsity_tiny_chexnet_counts_every_convolution():
    model = tiny_chexnet(3)
    report = measure_sparsity(model)
    convolutions = [layer for layer in model.layers if isinstance(layer, layers.Conv2D)]
    assert [layer.name for layer in report.layers] == [layer.name for layer in convolutions]
    assert report.weights == sum(np.prod(layer.kernel.shape) for layer in convolutions)
    assert "logits" in report.excluded


def file_with(zeros: int, weights: int = 20000) -> bytes:
    """A header and int8 codes, so many of them zero, at random places."""
    rng = np.random.default_rng(0)
    codes = rng.integers(1, 127, weights).astype(np.int8)
    codes[rng.permutation(weights)[:zeros]] = 0
    return b"TFL3" * 25 + codes.tobytes()


def test_size_statement_zeros_show_in_the_deflated_size_alone():
    dense = size_statement(file_with(0), weights=20000, zeros=0, bytes_per_weight=1)
    sparse = size_statement(file_with(14000), weights=20000, zeros=14000, bytes_per_weight=1)
    assert dense.raw_bytes == sparse.raw_bytes == 100 + 20000
    assert dense.nonzero_bytes == dense.raw_bytes
    assert sparse.nonzero_bytes == 100 + 6000
    assert sparse.deflated_bytes < 0.7 * dense.deflated_bytes
    assert sparse.deflated_bytes > sparse.nonzero_bytes  # where the zeros are costs something too
    assert sparse.zero_fraction == 0.7


def test_size_statement_sentence_says_all_three_and_what_zeros_do_not_do():
    statement = size_statement(file_with(14000), weights=20000, zeros=14000, bytes_per_weight=1)
    assert statement.sentence == (
        f"20,100 bytes on disk, {statement.deflated_bytes:,} deflated, 6,100 without its zeros; 70.0% of 20,000 "
        "kernel weights are zero. Zeros alone make neither a smaller .tflite nor a faster DenseNet: the file stores "
        "every zero and the kernels multiply by it. Only a deflated copy (a zip, a compressed download) is smaller; "
        "removing filters and int8 shrink the file itself."
    )


def test_size_statement_float_weights_count_four_bytes_each():
    assert size_statement(bytes(400), weights=100, zeros=25, bytes_per_weight=4).nonzero_bytes == 300
    assert size_statement(b"x", weights=0, zeros=0, bytes_per_weight=4).zero_fraction == 0.0


@pytest.mark.parametrize(("weights", "zeros", "width"), [(10, 11, 1), (10, -1, 1), (101, 5, 1), (26, 5, 4), (10, 5, 0)])
def test_size_statement_numbers_of_another_file_are_an_error(weights, zeros, width):
    with pytest.raises(CompressionError, match=rf"{zeros} zeros among {weights} .* file of 100 bytes: count them"):
        size_statement(bytes(100), weights=weights, zeros=zeros, bytes_per_weight=width)
