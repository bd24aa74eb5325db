"""Another image size, head or precision: the weights come along, and what cannot change says so."""

from __future__ import annotations

import numpy as np
import pytest

from cxr_compress.errors import CompressionError, UnsupportedLayerError
from cxr_compress.keras2 import keras
from cxr_compress.models import tiny_chexnet
from cxr_compress.models.variants import at_size, in_precision, with_head
from tests.train.images import small_net


@pytest.fixture(scope="module")
def model():
    keras.utils.set_random_seed(0)
    return tiny_chexnet(num_classes=2, input_shape=(32, 32, 3))


def images(size: int) -> np.ndarray:
    return np.random.default_rng(0).normal(0, 1, (2, size, size, 3)).astype(np.float32)


def test_at_size_computes_what_the_network_computes_without_a_fixed_size(model):
    larger = at_size(model, 64, 64)
    assert larger.input_shape == (None, 64, 64, 3)
    free = tiny_chexnet(num_classes=2, input_shape=(None, None, 3))
    free.set_weights(model.get_weights())
    np.testing.assert_allclose(larger(images(64)).numpy(), free(images(64)).numpy(), atol=1e-6)
    free.set_weights([weight[..., ::-1] for weight in model.get_weights()])  # the control: other weights differ
    assert np.abs(larger(images(64)).numpy() - free(images(64)).numpy()).max() > 1e-4


def test_at_size_own_size_is_the_model_itself(model):
    assert at_size(model, 32, 32) is model


def test_at_size_sequential_model_works_and_a_flatten_says_why_not():
    layers = keras.layers
    pooled = keras.Sequential([layers.Conv2D(3, 3, input_shape=(32, 32, 3)), layers.GlobalAveragePooling2D()])
    assert at_size(pooled, 40, 48).input_shape == (None, 40, 48, 3)
    with pytest.raises(
        UnsupportedLayerError,
        match="small_net is made for images of 32 x 32 px and its layers do not fit 40 x 40",
    ):
        at_size(small_net(), 40, 40)


def test_with_head_keeps_every_other_weight_and_the_model_it_was_given(model):
    before = model.get_weights()
    wider = with_head(model, [1, None, None, 0, None])
    assert wider.output_shape == (None, 5)
    assert wider.layers[-1].name == "logits"
    for ours, theirs in zip(model.layers[:-1], wider.layers[:-1], strict=True):
        for one, other in zip(ours.get_weights(), theirs.get_weights(), strict=True):
            np.testing.assert_array_equal(one, other)
    for one, other in zip(before, model.get_weights(), strict=True):
        np.testing.assert_array_equal(one, other)
    assert with_head(model, [0, 1]) is model
    swapped = with_head(model, [1, 0])
    np.testing.assert_array_equal(swapped.get_weights()[-2], model.get_weights()[-2][:, ::-1])
    np.testing.assert_array_equal(swapped.get_weights()[-1], model.get_weights()[-1][::-1])


def test_with_head_model_that_ends_in_something_else_is_an_error():
    layers = keras.layers
    pooled = keras.Sequential([layers.Conv2D(3, 3, input_shape=(32, 32, 3)), layers.GlobalAveragePooling2D(name="p")])
    with pytest.raises(UnsupportedLayerError, match="ends in a Dense layer of logits, got GlobalAveragePooling2D 'p'"):
        with_head(pooled, [None] * 5)
    activated = keras.Sequential([layers.Dense(3, activation="sigmoid", input_shape=(4,), name="s")])
    with pytest.raises(UnsupportedLayerError, match="got Dense 's'"):
        with_head(activated, [None] * 5)


# bfloat16 has 8 bits of mantissa, float16 11: each layer rounds by 2^-9 or 2^-12 relative, and the errors of some
# twenty layers add up like noise; a few per cent, and a few per mille, of the outputs' size.
@pytest.mark.parametrize(("precision", "tolerance"), [("mixed_bfloat16", 0.1), ("mixed_float16", 0.02)])
def test_in_precision_computes_nearly_the_same_and_goes_back_exactly(model, precision, tolerance):
    mixed = in_precision(model, precision)
    exact, rounded = model(images(32)).numpy(), mixed(images(32))
    assert {weight.dtype.name for weight in mixed.weights} == {"float32"}
    assert mixed.layers[2].compute_dtype == precision.removeprefix("mixed_")
    assert rounded.dtype == "float32"
    scale = np.abs(exact).max()
    difference = np.abs(rounded.numpy() - exact).max()
    assert 0 < difference < tolerance * scale
    back = in_precision(mixed, "float32")
    np.testing.assert_array_equal(back(images(32)).numpy(), exact)
    assert back.get_config() == model.get_config()


def test_in_precision_auto_without_gpu_is_the_model_itself(model, monkeypatch):
    monkeypatch.setattr("tensorflow.config.list_physical_devices", lambda kind: [])
    assert in_precision(model, "auto") is model


def test_in_precision_unknown_word_is_an_error(model):
    with pytest.raises(CompressionError, match=r"expected a precision of auto, float32, .*; got 'half'"):
        in_precision(model, "half")
