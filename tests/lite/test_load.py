from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tensorflow as tf

from cxr_compress.errors import CompressionError, ModelFileError
from cxr_compress.lite import convert
from cxr_compress.lite.load import fingerprint, load_saved_model
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
