"""CheXNet: its size to the parameter, its function against tf_keras's own DenseNet121, and what it refuses."""

from __future__ import annotations

import numpy as np
import pytest

from cxr_compress.errors import CompressionError
from cxr_compress.keras2 import keras
from cxr_compress.models import chexnet, tiny_chexnet

RNG_SEED = 7


def random_weights(model: keras.Model, seed: int = RNG_SEED) -> list[np.ndarray]:
    """Weights that keep the signal alive through 121 layers: He-normal kernels, BN gains and variances around 1."""
    rng = np.random.default_rng(seed)
    weights = []
    for variable in model.weights:
        shape, name = tuple(variable.shape), variable.name
        if "kernel" in name:
            weights.append(rng.normal(0, np.sqrt(2 / np.prod(shape[:-1])), shape))
        elif "gamma" in name or "variance" in name:
            weights.append(rng.uniform(0.7, 1.4, shape))
        else:
            weights.append(rng.normal(0, 0.2, shape))
    return [np.asarray(weight, np.float32) for weight in weights]


def images(count: int, side: int) -> np.ndarray:
    return np.random.default_rng(3).normal(0, 1, (count, side, side, 3)).astype(np.float32)


@pytest.fixture(scope="module")
def reference():
    """tf_keras's own DenseNet121 for 64 px images, with a Dense head and live random weights."""
    base = keras.applications.DenseNet121(include_top=False, weights=None, input_shape=(64, 64, 3), pooling="avg")
    model = keras.Model(base.input, keras.layers.Dense(14)(base.output))
    model.set_weights(random_weights(model))
    return model


@pytest.mark.densenet
def test_chexnet_default_arguments_has_densenet121s_parameters_and_layer_names(reference, densenet121):
    model = densenet121
    assert model.count_params() == 7_037_504 + 1024 * 14 + 14 == 7_051_854
    assert model.input_shape == (None, 224, 224, 3)
    assert model.output_shape == (None, 14)
    unnamed = ("input", "zero_padding2d", "dense")  # those that the application leaves to Keras to number
    expected = [layer.name for layer in reference.layers if not layer.name.startswith(unnamed)]
    assert [layer.name for layer in model.layers if layer.name in expected] == expected
    assert {layer.name for layer in model.layers} - set(expected) == {"image", "conv1_pad", "pool1_pad", "logits"}


@pytest.mark.densenet
def test_chexnet_same_weights_computes_what_the_application_computes(reference):
    model = chexnet(14, (64, 64, 3))
    model.set_weights(reference.get_weights())
    x = images(4, 64)
    expected = reference(x).numpy()
    spread = float(expected.std(axis=0).mean())
    assert spread > 1e-2  # the images reach the logits: equal outputs mean something
    # The same operations in the same order; only the threads that add up a sum may differ, by some float32 roundings.
    assert np.abs(model(x).numpy() - expected).max() < 1e-4 * spread

    layer = model.get_layer("conv3_block5_2_conv")
    (kernel,) = layer.get_weights()
    layer.set_weights([kernel[..., [1, 0, *range(2, kernel.shape[-1])]]])
    assert np.abs(model(x).numpy() - expected).max() > 1e-2 * spread


def test_chexnet_one_layer_one_block_has_the_parameters_of_written_out_products():
    # width 1/8: stem 8, growth 4, bottleneck 16; a batch norm holds 4 numbers per channel.
    stem = 7 * 7 * 3 * 8 + 4 * 8
    dense_layer = 4 * 8 + 8 * 16 + 4 * 16 + 3 * 3 * 16 * 4
    tail = 4 * (8 + 4) + (8 + 4) * 2 + 2
    assert chexnet(2, (32, 32, 3), width=1 / 8, blocks=(1,)).count_params() == stem + dense_layer + tail


@pytest.mark.parametrize(
    ("width", "stem", "growth", "bottleneck"),
    [(1.0, 64, 32, 128), (0.5, 32, 16, 64), (0.25, 16, 8, 32), (0.3, 20, 8, 40), (0.01, 4, 4, 4), (1.5, 96, 48, 192)],
)
def test_chexnet_width_rounds_channels_to_multiples_of_four(width, stem, growth, bottleneck):
    model = chexnet(1, (32, 32, 3), width=width, blocks=(1, 1))
    assert model.get_layer("conv1/conv").filters == stem
    assert model.get_layer("conv2_block1_1_conv").filters == bottleneck
    assert model.get_layer("conv2_block1_2_conv").filters == growth
    assert model.get_layer("pool2_conv").filters == (stem + growth) // 2


def test_tiny_chexnet_is_a_densenet_with_transitions_under_300k_parameters():
    model = tiny_chexnet(14)
    assert model.count_params() < 300_000
    assert sum(isinstance(layer, keras.layers.AveragePooling2D) for layer in model.layers) == 3
    assert sum(isinstance(layer, keras.layers.Concatenate) for layer in model.layers) == 2 + 4 + 6 + 4
    assert model.layers[-1].activation is keras.activations.linear
    assert tiny_chexnet().output_shape == (None, 1)


def test_chexnet_free_input_size_runs_at_several_sizes():
    model = chexnet(3, (None, None, 1), width=0.1, blocks=(1, 1))
    model.set_weights(random_weights(model))
    for height, width in [(32, 32), (48, 80)]:
        logits = model(images(2, 96)[:, :height, :width, :1]).numpy()
        assert logits.shape == (2, 3)
        assert np.ptp(logits, axis=0).min() > 1e-4


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"input_shape": (31, 224, 3)}, r"\(31, 224, 3\) is too small.*at least 32x32 pixels"),
        ({"input_shape": (224, 224)}, r"input_shape must be \(height, width, channels\).*got \(224, 224\)"),
        ({"input_shape": (224, 224, None)}, "input_shape must be"),
        ({"num_classes": 0}, "num_classes must be at least 1, got 0"),
        ({"width": 0.0}, "width must be above 0, got 0.0"),
        ({"width": float("nan")}, "width must be above 0, got nan"),
        ({"blocks": ()}, r"blocks must be positive layer counts.*got \(\)"),
        ({"blocks": (2, 0)}, r"blocks must be positive layer counts.*got \(2, 0\)"),
    ],
)
def test_chexnet_impossible_argument_is_one_clear_error(arguments, message):
    with pytest.raises(CompressionError, match=message):
        chexnet(**arguments)
