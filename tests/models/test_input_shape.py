"""What a model must take to be scored, trained or pruned here: one normalized image, channels last."""

from __future__ import annotations

import re

import pytest
import tensorflow as tf

from cxr_compress.errors import UnsupportedLayerError
from cxr_compress.keras2 import keras
from cxr_compress.models import save_model
from cxr_compress.models.original import read_original, require_float_images, require_image_input

layers = keras.layers


def taking(*shape, **options) -> keras.Model:
    image = keras.Input(shape, **options)
    return keras.Model(image, layers.Dense(2)(tf.cast(layers.Flatten()(image), "float32")))


@pytest.mark.parametrize("shape", [(8, 9, 3), (8, 9, 1), (1, 9, 3), (3, 3, 3)])
def test_require_image_input_gives_height_width_and_channels(shape):
    require_float_images(taking(*shape))
    assert require_image_input((None, *shape)) == shape
    assert require_image_input((None, None, None, shape[2])) == (None, None, shape[2])


@pytest.mark.parametrize(
    ("model", "said"),
    [
        (taking(3, 8, 9), "the model is channels-first"),
        (taking(8, 9), "images without a channel axis"),
        (taking(8, 9, 3, dtype="uint8"), "expected a model of float32 images, got one of uint8"),
        (taking(8, 9, 3, dtype="int32"), "expected a model of float32 images, got one of int32"),
        (keras.Model(two := [keras.Input((4, 4, 3)) for _ in "ab"], layers.Add()(two)), "a model of one image, got 2"),
    ],
)
def test_require_float_images_says_in_one_line_what_a_model_takes_instead(model, said):
    with pytest.raises(UnsupportedLayerError, match=rf"^[^\n]*{re.escape(said)}[^\n]*$"):
        require_float_images(model)


def test_original_of_channels_first_is_not_scored_at_3_pixels(tmp_path):
    save_model(taking(3, 64, 64), tmp_path / "first.keras")
    with pytest.raises(UnsupportedLayerError, match="the model is channels-first"):
        read_original(tmp_path / "first.keras", preset="imagenet_torch")
