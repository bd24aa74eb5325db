"""Files of Keras 3: the same numbers in tf_keras for every layer that may be in them, a named reason for the others."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest

from cxr_compress.errors import ModelFileError
from cxr_compress.keras2 import keras
from cxr_compress.lite import freeze
from cxr_compress.models import load_model, save_model
from cxr_compress.models.keras3_file import ACTIVATIONS, AUGMENTATIONS, LAYERS
from cxr_compress.structured import analyze_channels
from tests.models import keras3_writer
from tests.models.keras3_writer import ARGUMENTS

REPOSITORY = Path(__file__).resolve().parents[2]
# Both run the same kernels of TensorFlow in float32, fused in another order here and there.
SAME = 2e-6
MODELS = (*ARGUMENTS, "branches", "sequential")


def keras3(*command):
    """Run Python with Keras 3 as `keras`."""
    environment = {key: value for key, value in os.environ.items() if key != "TF_USE_LEGACY_KERAS"}
    environment |= {"KERAS_BACKEND": "tensorflow", "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run(
        [sys.executable, *command], cwd=REPOSITORY, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    folder = tmp_path_factory.mktemp("keras3")
    keras3("-m", "tests.models.keras3_writer", str(folder))
    with np.load(folder / "outputs.npz") as stored:
        return folder, {name: stored[name] for name in stored.files}


def test_keras3_every_layer_and_activation_that_may_load_is_tried():
    assert {"InputLayer", *ARGUMENTS} == LAYERS


@pytest.mark.parametrize("name", MODELS)
def test_load_model_file_of_keras_3_gives_the_numbers_of_keras_3(written, name):
    folder, outputs = written
    model = load_model(folder / f"{name}.keras")
    assert isinstance(model, keras.Model)
    np.testing.assert_allclose(model(outputs["images"]), outputs[name], rtol=SAME, atol=SAME)
    assert np.ptp(outputs[name]) > 0.1
    if model.weights:  # the control: its weights are what makes these numbers
        model.set_weights([np.flip(weight) * 1.1 for weight in model.get_weights()])
        assert np.abs(model(outputs["images"]) - outputs[name]).max() > 1e-2


@pytest.mark.parametrize("name", sorted(ACTIVATIONS))
def test_keras3_activation_is_the_same_function(written, name):
    _, outputs = written
    ours = keras.activations.get(name)(keras.backend.constant(outputs["images"]))
    np.testing.assert_allclose(ours, outputs[f"activation_{name}"], rtol=SAME, atol=SAME)


def test_load_model_nested_file_of_keras_3_keeps_wiring_precision_and_regularizers(written, tmp_path):
    folder, outputs = written
    said = []
    model = load_model(folder / "nested.keras", said.append)
    # bfloat16 has 8 bits: a rounding of 1/256 of a logit, a quarter of that in a probability.
    np.testing.assert_allclose(model(outputs["images"]), outputs["nested"], rtol=0, atol=0.01)
    assert np.ptp(outputs["nested"]) > 0.05
    assert [layer.dtype_policy.name for layer in model.layers][-2:] == ["float32", "float32"]
    (line,) = said
    assert re.search(r"^nested\.keras: \w+ was made in mixed_bfloat16: it is taken in float32", line)
    assert len(model.losses) == 1
    norm = next(layer for layer in model.layers if isinstance(layer, keras.layers.BatchNormalization))
    assert not norm.trainable
    training = model(outputs["images"], training=True).numpy()  # only the stem's batch norm looks at the batch
    assert np.abs(training - model(outputs["images"])).max() > 0
    save_model(model, tmp_path / "two.keras")
    loaded = keras.models.load_model(tmp_path / "two.keras")
    np.testing.assert_array_equal(loaded(outputs["images"]), model(outputs["images"]))


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("operation", r"it has the operation Multiply \(multiply\w*\), which tf_keras does not have"),
        ("activation", r"its layer dense\w* has the activation hard_sigmoid, which tf_keras does not have or computes"),
        ("kind", r"it has the layer RandomCrop \(random_crop\), which tf_keras does not have or computes otherwise"),
        ("constant", r"it has the layer AutoContrast \(auto_contrast\w*\), which tf_keras does not have"),
        (
            "aspect",
            r"its layer resizing\w* \(Resizing\) crops or interpolates in a way that tf_keras computes otherwise",
        ),
        ("crop", r"its layer center_crop\w* \(CenterCrop\) cuts 9 x 9 out of 8 x 8, which tf_keras computes otherwise"),
        ("option", r"its layer layer_norm\w+ \(LayerNormalization\) has the option rms_scaling, which tf_keras does"),
        ("tensors", r"it has the layer MultiHeadAttention"),
    ],
)
def test_load_model_file_of_keras_3_that_tf_keras_cannot_rebuild_says_why_and_how_to_go_on(written, name, message):
    folder, _ = written
    with pytest.raises(ModelFileError, match=rf"was saved by Keras 3\.\S+ .*: {message}.* --saved_model_dir") as caught:
        load_model(folder / f"refused_{name}.keras")
    assert "\n" not in str(caught.value)


def test_load_model_augmentation_of_keras_3_does_nothing_at_inference(written, tmp_path):
    """keras-team/keras#19100: a RandomFlip in front of the network kept the whole file from loading."""
    folder, outputs = written
    assert set(keras3_writer.AUGMENTATIONS) == AUGMENTATIONS
    said = []
    model, images = load_model(folder / "augmented.keras", said.append), outputs["images"][..., :3]
    np.testing.assert_allclose(model(images), outputs["augmented"], rtol=SAME, atol=SAME)
    assert np.abs(model(images[:, :, ::-1]) - outputs["augmented"]).max() > 1e-2  # the control: a flip shows
    (line,) = said
    assert re.search(r"^augmented\.keras: its layers aug_mix\w*, .*random_zoom\w* change images in training only", line)
    assert {"MixUp", "RandomFlip"}.isdisjoint(type(layer).__name__ for layer in model._flatten_layers())
    analysis = analyze_channels(model)
    assert [group.channels for group in analysis.groups.values()] == []  # the one convolution makes the output
    frozen = freeze(model)
    made = frozen.function(keras.backend.constant(images[:1]))
    np.testing.assert_allclose(made[0], outputs["augmented"][:1], rtol=1e-5, atol=1e-5)
    save_model(model, tmp_path / "plain.keras")
    np.testing.assert_array_equal(keras.models.load_model(tmp_path / "plain.keras")(images), model(images))


def test_load_model_h5_of_keras_3_says_what_to_save_instead(written):
    folder, _ = written
    with pytest.raises(ModelFileError, match=r"sequential\.h5 was saved by Keras 3\.\S+ .* save it as \.keras instead"):
        load_model(folder / "sequential.h5")


def swapped(written, tmp_path, **entries):
    """sequential.keras with entries of another file."""
    path = tmp_path / "swapped.keras"
    with zipfile.ZipFile(written[0] / "sequential.keras") as old, zipfile.ZipFile(path, "w") as new:
        for entry in old.namelist():
            new.writestr(entry, entries.get(entry.replace(".", "_"), old.read(entry)))
    return path


def test_load_model_file_of_keras_3_with_weights_of_another_network_is_an_error(written, tmp_path):
    with zipfile.ZipFile(written[0] / "branches.keras") as archive:
        weights = archive.read("model.weights.h5")
    path = swapped(written, tmp_path, model_weights_h5=weights)
    with pytest.raises(ModelFileError, match=r"weights of dense\w* have the shapes \[\], the layer needs \[\(144, 2\)"):
        load_model(path)
    with pytest.raises(ModelFileError, match=r"swapped\.keras was saved by Keras 3\.\S+ and tf_keras cannot rebuild"):
        load_model(swapped(written, tmp_path, model_weights_h5=b"no HDF5 file"))


def test_load_model_file_of_keras_3_reads_no_other_file(written, tmp_path):
    import h5py

    with zipfile.ZipFile(written[0] / "sequential.keras") as archive:
        (tmp_path / "own.h5").write_bytes(archive.read("model.weights.h5"))
    with h5py.File(tmp_path / "own.h5", "a") as own:
        own.move("layers/dense", "elsewhere")
        own["layers/dense"] = h5py.ExternalLink(str(tmp_path / "other.h5"), "layers/dense")
    path = swapped(written, tmp_path, model_weights_h5=(tmp_path / "own.h5").read_bytes())
    with pytest.raises(ModelFileError, match="its entry layers/dense/vars leads out of the file: it is refused"):
        load_model(path)


OBJECT = """
import keras
from cxr_compress.errors import CompressionError
from cxr_compress.models import load_model
image = keras.Input((4, 4, 3))
try:
    load_model(keras.Model(image, keras.layers.Flatten()(image), name="mine"))
except CompressionError as error:
    print(error)
"""


def test_load_model_object_of_keras_3_says_how_to_load_it():
    line = 'write it with model.save("model.keras") and load that with cxr_compress.models.load_model'
    assert keras3("-c", OBJECT) == f"expected a model of tf_keras, got the Keras 3 object mine: {line}\n"
