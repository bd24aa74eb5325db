from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tensorflow as tf

from cxr_compress.errors import CompressionError, ModelFileError, UnsupportedLayerError
from cxr_compress.keras2 import keras
from cxr_compress.lite import convert, freeze
from cxr_compress.lite.freeze import fingerprint, load_saved_model, other_precisions
from tests.lite import nets
from tests.lite.conftest import run

KERAS_3 = """
import sys, keras
image = keras.Input((16, 16, 3))
x = keras.layers.GlobalAveragePooling2D()(keras.layers.Conv2D(4, 3, activation="relu")(image))
model = keras.Model(image, keras.layers.Dense(3)(x))
model.export(sys.argv[1] + "/saved", verbose=False)
"""


@pytest.fixture(scope="module")
def keras_3(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a model that real Keras 3 saved, as a SavedModel."""
    folder = tmp_path_factory.mktemp("keras3")
    environment = {key: value for key, value in os.environ.items() if key != "TF_USE_LEGACY_KERAS"}
    environment |= {"KERAS_BACKEND": "tensorflow"}
    subprocess.run([sys.executable, "-c", KERAS_3, str(folder)], env=environment, check=True, capture_output=True)
    return folder


def test_load_saved_model_of_keras_3_converts(keras_3: Path) -> None:
    made = convert(load_saved_model(keras_3 / "saved"), "int8", calibration=[nets.batch(16)])
    assert made.audit.outputs[0].shape == (1, 3)


def test_load_saved_model_gives_the_outputs_of_the_model(chain: Any, tmp_path: Path) -> None:
    tf.saved_model.save(chain, str(tmp_path / "saved"))
    images = nets.batch(8)
    got = run(convert(load_saved_model(tmp_path / "saved"), "none").content, images)
    expected = chain(images, training=False).numpy()
    assert np.abs(got - expected).max() < 1e-4  # as in test_convert: 3 layers of at most 72 products
    assert np.abs(got - np.roll(expected, 1, axis=0)).max() > 0.1


def test_load_saved_model_without_the_signature_lists_those_it_has(chain: Any, tmp_path: Path) -> None:
    tf.saved_model.save(chain, str(tmp_path / "saved"))
    with pytest.raises(ModelFileError, match=r"no signature 'score', it has \['serving_default'\]"):
        load_saved_model(tmp_path / "saved", signature_key="score")
    with pytest.raises(ModelFileError, match="cannot be read as a SavedModel with tags"):
        load_saved_model(tmp_path / "saved", tags=("train",))


def test_load_saved_model_of_another_folder_fails(tmp_path: Path) -> None:
    with pytest.raises(ModelFileError, match=r"expected a SavedModel folder with saved_model\.pb in it"):
        load_saved_model(tmp_path)
    (tmp_path / "saved_model.pb").write_bytes(b"\xff junk")
    with pytest.raises(ModelFileError, match="cannot be read as a SavedModel"):
        load_saved_model(tmp_path)


def test_load_saved_model_with_an_open_size_asks_for_it(tmp_path: Path) -> None:
    tf.saved_model.save(nets.chain(size=None), str(tmp_path / "saved"))
    with pytest.raises(CompressionError, match="give input_size"):
        load_saved_model(tmp_path / "saved")
    assert load_saved_model(tmp_path / "saved", input_size=20).input_shape == (1, 20, 20, 3)


def test_fingerprint_follows_names_and_contents(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"1")
    (tmp_path / "b").write_bytes(b"2")
    whole = fingerprint(tmp_path)
    assert (
        fingerprint(tmp_path / "a") == "6b86b273ff34fce19d6b804eff5a3f5747ada4eaa22f1d49c01e52ddb7875b4b"
    )  # sha256("1")
    (tmp_path / "b").rename(tmp_path / "c")
    assert fingerprint(tmp_path) != whole


class Served(tf.Module):
    """A classifier whose signature takes another type than its float32 layers do."""

    def __init__(self, model: Any, dtype: Any, prepare: Any = lambda image: image) -> None:
        super().__init__()
        self.model, self.prepare = model, prepare
        self.serve = tf.function(self._logits, input_signature=[tf.TensorSpec((None, 16, 16, 3), dtype, name="image")])

    def _logits(self, image: Any) -> Any:
        return self.model(tf.cast(self.prepare(image), self.model.inputs[0].dtype), training=False)


def loaded(served: Served, folder: Path) -> Any:
    tf.saved_model.save(served, str(folder), signatures=served.serve)
    return load_saved_model(folder)


def logits(frozen: Any, images: np.ndarray) -> np.ndarray:
    return np.concatenate([np.asarray(frozen.function(tf.constant(image[None]))[0]) for image in images])


@pytest.fixture(scope="module")
def pixels() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (16, 16, 16, 3)).astype(np.float32)


@pytest.mark.parametrize("policy", ["mixed_float16", "mixed_bfloat16", "float64"])
def test_load_saved_model_of_another_precision_computes_in_float32(policy: str, pixels: Any, tmp_path: Path) -> None:
    """tensorflow/tensorflow#46380: what mixed precision leaves in a graph has no kernel on a device."""
    keras.mixed_precision.set_global_policy(policy)
    try:
        model = nets.pixel_net()
    finally:
        keras.mixed_precision.set_global_policy("float32")
    whole = nets.pixel_net()
    whole.set_weights([np.asarray(weight, np.float32) for weight in model.get_weights()])
    frozen = loaded(Served(model, tf.float32), tmp_path / "saved")
    name = policy.removeprefix("mixed_")
    assert frozen.notes == (f"the model computes in {name}: it is taken in float32, with equal weights",)
    assert not other_precisions(frozen.graph_def)
    expected = whole(pixels).numpy()
    np.testing.assert_allclose(logits(frozen, pixels), expected, rtol=0, atol=1e-5 * np.ptp(expected))
    made = convert(frozen, "none")
    np.testing.assert_allclose(run(made.content, pixels), expected, rtol=0, atol=1e-5 * np.ptp(expected))
    # The controls: other images, and the model's own numbers where it computes with 8 or 11 bits.
    assert np.abs(run(made.content, pixels[::-1].copy()) - expected).max() > 0.01
    own = np.asarray(model(pixels), np.float32)
    assert policy == "float64" or np.abs(own - expected).max() > 1e-4 * np.ptp(expected)


def test_load_saved_model_of_uint8_takes_pixels_and_quantizes_whole(pixels: np.ndarray, tmp_path: Path) -> None:
    model = nets.pixel_net()
    frozen = loaded(Served(model, tf.uint8), tmp_path / "saved")
    assert frozen.pixel_input
    assert not frozen.notes
    expected = model(pixels).numpy()
    # A device divides pixels by 255 and multiplies them again.
    np.testing.assert_allclose(logits(frozen, pixels * np.float32(0.9999999)), expected, rtol=1e-4, atol=1e-5)
    made = convert(frozen, ["none", "int8"], calibration=[pixels])
    assert {one.kind for one in made["int8"].audit.ops}.isdisjoint(("CAST", "ROUND", "DEQUANTIZE"))
    np.testing.assert_allclose(run(made["none"].content, pixels), expected, rtol=1e-4, atol=1e-5)
    assert np.abs(run(made["int8"].content, pixels) - expected).max() < 0.1 * np.ptp(expected)
    assert np.abs(run(made["none"].content, pixels / 255) - expected).max() > 0.2 * np.ptp(expected)


def test_load_saved_model_that_computes_with_whole_pixels_rounds_them(pixels: np.ndarray, tmp_path: Path) -> None:
    model = nets.pixel_net()
    frozen = loaded(Served(model, tf.uint8, lambda image: tf.cast(image, tf.int32) // 16 * 16), tmp_path / "saved")
    expected = model(pixels // 16 * 16).numpy()
    np.testing.assert_allclose(logits(frozen, pixels * np.float32(0.9999999)), expected, rtol=1e-4, atol=1e-5)
    assert np.abs(logits(frozen, pixels) - model(pixels)).max() > 1e-3
    np.testing.assert_allclose(run(convert(frozen, "none").content, pixels), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("dtype", ["int32", "uint16", "int8", "string"])
def test_load_saved_model_of_other_inputs_is_refused_by_name(dtype: str, tmp_path: Path) -> None:
    prepare = (lambda image: tf.zeros((1, 16, 16, 3))) if dtype == "string" else (lambda image: image)
    served = Served(nets.pixel_net(), tf.as_dtype(dtype), prepare)
    with pytest.raises(UnsupportedLayerError, match=f"of float32 numbers or uint8 pixels, got {dtype}: export the"):
        loaded(served, tmp_path / "saved")


def test_load_saved_model_without_a_rank_is_refused(tmp_path: Path) -> None:
    module = tf.Module()
    module.serve = tf.function(lambda image: tf.reduce_sum(image, axis=[1, 2]), input_signature=[tf.TensorSpec(None)])
    tf.saved_model.save(module, str(tmp_path / "saved"), signatures=module.serve)
    with pytest.raises(UnsupportedLayerError, match="one whose number of axes is left open"):
        load_saved_model(tmp_path / "saved")


def test_freeze_of_a_keras_model_of_uint8_takes_pixels(pixels: np.ndarray) -> None:
    image = keras.Input((16, 16, 3), dtype="uint8")
    model = keras.Model(image, nets.pixel_net()(tf.cast(image, tf.float32)))
    frozen = freeze(model)
    assert frozen.pixel_input
    np.testing.assert_allclose(logits(frozen, pixels), model(pixels.astype(np.uint8)), rtol=1e-4, atol=1e-5)
    assert not freeze(nets.pixel_net()).pixel_input
