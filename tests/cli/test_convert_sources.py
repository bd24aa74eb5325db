"""What cxr_convert takes: files of Keras 3, .h5, SavedModels with tags and signatures; bad output paths."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import tensorflow as tf

from cxr_compress.cli.convert import main
from cxr_compress.device import Classifier
from cxr_compress.device.preprocess import PreprocessSpec, preprocess
from cxr_compress.keras2 import keras
from cxr_compress.models.files import save_model
from tests.cli.runner import errors_of
from tests.lite import nets

PRESET = "--preset=imagenet_torch"  # of models whose file does not say it
Capture = pytest.CaptureFixture[str]
SPEC = PreprocessSpec(16, 16)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """image.png, chain.keras, chain.h5, and saved/ with two signatures under a tag of its own."""
    folder = tmp_path_factory.mktemp("sources")
    picture = np.random.default_rng(0).integers(0, 255, (20, 20), np.uint8)
    assert cv2.imwrite(str(folder / "image.png"), picture)
    model = nets.chain()
    save_model(model, folder / "chain.keras")
    with pytest.warns(UserWarning, match="HDF5"):
        model.save(folder / "chain.h5")

    class Signatures(tf.Module):
        """`plain` gives the logits, `twice` their double."""

        def __init__(self) -> None:
            super().__init__()
            self.model = model

        @tf.function(input_signature=[tf.TensorSpec((None, 16, 16, 3), tf.float32, name="image")])
        def plain(self, image: Any) -> Any:
            return {"logits": self.model(image, training=False)}

        @tf.function(input_signature=[tf.TensorSpec((None, 16, 16, 3), tf.float32, name="image")])
        def twice(self, image: Any) -> Any:
            return {"logits": 2.0 * self.model(image, training=False)}

    module = Signatures()
    tf.saved_model.save(module, str(folder / "saved"), {"plain": module.plain, "twice": module.twice})
    return folder


def logits(folder: Path, target: Path, *source: str) -> np.ndarray:
    assert main([PRESET, *source, f"--output_file={target}"]) == 0
    return Classifier(target).predict(folder / "image.png").logits


def expected(folder: Path) -> np.ndarray:
    picture = preprocess(folder / "image.png", SPEC)[np.newaxis]
    return np.asarray(keras.models.load_model(folder / "chain.keras", compile=False)(picture, training=False))[0]


def test_convert_of_an_h5_file_gives_the_logits_of_the_model(folder: Path, tmp_path: Path) -> None:
    found = logits(folder, tmp_path / "x", f"--keras_model_file={folder / 'chain.h5'}")
    np.testing.assert_allclose(found, expected(folder), atol=1e-4)


def test_convert_of_a_saved_model_takes_the_signature_that_is_named(folder: Path, tmp_path: Path) -> None:
    source = f"--saved_model_dir={folder / 'saved'}"
    plain, twice = (
        logits(folder, tmp_path / key, source, f"--saved_model_signature_key={key}") for key in ("plain", "twice")
    )
    np.testing.assert_allclose(plain, expected(folder), atol=1e-4)
    np.testing.assert_allclose(twice, 2 * plain, atol=1e-4)
    assert np.abs(plain).max() > 0.01  # control: twice nothing would be nothing


KERAS_3 = """
import sys
import numpy as np
import keras
assert keras.__version__.startswith("3."), keras.__version__
keras.utils.set_random_seed(1)
image = keras.Input((16, 16, 3))
x = keras.layers.BatchNormalization()(keras.layers.Conv2D(8, 3, padding="same", name="first")(image))
x = keras.layers.Concatenate()([x, keras.layers.DepthwiseConv2D(3, padding="same")(keras.layers.ReLU()(x))])
model = keras.Model(image, keras.layers.Dense(4, name="logits")(keras.layers.GlobalAveragePooling2D()(x)))
model.save(sys.argv[1] + "/three.keras")
image = np.load(sys.argv[1] + "/image.npy")
np.save(sys.argv[1] + "/logits.npy", model(image, training=False).numpy())
"""


def test_convert_of_a_keras_3_file_gives_the_logits_of_keras_3(folder: Path, tmp_path: Path) -> None:
    np.save(tmp_path / "image.npy", preprocess(folder / "image.png", SPEC)[np.newaxis])
    environment = {key: value for key, value in os.environ.items() if key != "TF_USE_LEGACY_KERAS"}
    environment |= {"KERAS_BACKEND": "tensorflow", "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run(
        [sys.executable, "-c", KERAS_3, str(tmp_path)], env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-2000:]
    there = np.load(tmp_path / "logits.npy")[0]
    found = logits(folder, tmp_path / "x", f"--keras_model_file={tmp_path / 'three.keras'}")
    np.testing.assert_allclose(found, there, atol=1e-5 + 1e-5 * np.abs(there).max())
    assert np.ptp(there) > 0.01


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (
            ["--saved_model_signature_key=other"],
            "has no signature 'other', it has ['plain', 'twice']: give one of those",
        ),
        (["--saved_model_tag_set=train"], "cannot be read as a SavedModel with tags ('train',)"),
    ],
)
def test_convert_of_a_saved_model_without_that_tag_or_signature_is_one_line(
    folder: Path, tmp_path: Path, capsys: Capture, flags: list[str], message: str
) -> None:
    assert main([PRESET, f"--saved_model_dir={folder / 'saved'}", f"--output_file={tmp_path / 'x'}", *flags]) == 2
    errors = errors_of(capsys.readouterr().err)
    assert len(errors) == 1
    assert message in errors[0]


def test_convert_of_a_layer_without_a_tflite_operator_names_both(folder: Path, tmp_path: Path, capsys: Capture) -> None:
    class Odd(tf.Module):
        """One operation that TensorFlow Lite lacks, in a scope named as a layer's is."""

        @tf.function(input_signature=[tf.TensorSpec((None, 16, 16, 3), tf.float32, name="image")])
        def __call__(self, image: Any) -> Any:
            with tf.name_scope("net/odd"):
                image = tf.math.bessel_i0e(image)
            return {"logits": tf.reduce_mean(image, [1, 2])}

    odd = Odd()
    tf.saved_model.save(odd, str(tmp_path / "saved"), {"serving_default": odd.__call__})
    assert main([PRESET, f"--saved_model_dir={tmp_path / 'saved'}", f"--output_file={tmp_path / 'x'}"]) == 2
    # The converter's own pages go past a replaced stderr; as a process the command holds them back.
    own = [line for line in capsys.readouterr().err.splitlines() if line.startswith("cxr_convert: ")]
    errors = errors_of("\n".join(own))
    assert len(errors) == 1
    assert "no TFLite operator for tf.BesselI0e (layer 'odd/bessel_i0e')" in errors[0]


@pytest.mark.skipif(not Path("/proc/self").exists(), reason="a folder that nobody can write to is needed")
def test_convert_to_a_place_that_cannot_be_written_is_one_line(folder: Path, capsys: Capture) -> None:
    assert main([PRESET, f"--keras_model_file={folder / 'chain.keras'}", "--output_file=/proc/x.tflite"]) == 2
    errors = errors_of(capsys.readouterr().err)
    assert len(errors) == 1
    assert "/proc" in errors[0]
