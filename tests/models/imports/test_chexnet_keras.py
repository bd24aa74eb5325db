"""CheXNet-Keras files: flat or nested, weights or whole model, and names that Keras has counted up."""

from __future__ import annotations

import re
import warnings

import h5py
import numpy as np
import pytest

from cxr_compress.data import NIH_FINDINGS
from cxr_compress.errors import ModelFileError
from cxr_compress.keras2 import keras
from cxr_compress.models import import_weights
from tests.models.imports.test_foreign import net, same_logits


@pytest.fixture(scope="module")
def model():
    return net()


def keras_model(model, nested: bool) -> keras.Model:
    """The same network as CheXNet-Keras builds it, flat or around a body, with a sigmoid head."""
    source = keras.models.clone_model(model)
    source.set_weights(model.get_weights())
    body = keras.Model(source.input, source.layers[-2].output, name="densenet121")
    image = keras.Input(body.input_shape[1:])
    features = body(image) if nested else body.output
    made = keras.Model(
        image if nested else body.input,
        keras.layers.Dense(14, activation="sigmoid", name="predictions")(features),
    )
    made.layers[-1].set_weights(model.layers[-1].get_weights())
    return made


@pytest.mark.parametrize("nested", [False, True])
@pytest.mark.parametrize("whole", [False, True])
def test_import_weights_chexnet_keras_h5_gives_the_model_back(tmp_path, model, nested, whole):
    path, source = tmp_path / "chexnet.h5", keras_model(model, nested)
    with warnings.catch_warnings():
        # tf_keras/src/engine/training.py advises the .keras format on every save to .h5.
        warnings.filterwarnings("ignore", "You are saving your model as an HDF5 file", UserWarning)
        source.save(path) if whole else source.save_weights(path)
    made = import_weights("chexnet_keras_h5", path, input_size=32)
    assert same_logits(made, model)
    assert made.about.findings == NIH_FINDINGS
    assert made.report.renamed["predictions/kernel:0"] == "logits/kernel:0"


def renumber(path, rename) -> None:
    """Rename weights as Keras does when it builds a network for the second time in a process."""
    with h5py.File(path, "r+") as file:
        for layer in file.attrs["layer_names"]:
            group = file[layer]
            arrays = {name: group[name][()] for name in group.attrs["weight_names"]}
            for name in list(group):
                del group[name]
            for name, array in arrays.items():
                group[rename(name)] = array
            group.attrs["weight_names"] = np.array([rename(name) for name in arrays], dtype="S")


def test_import_weights_keras_names_with_counters_are_known(tmp_path, model):
    path = tmp_path / "chexnet.h5"
    keras_model(model, nested=True).save_weights(path)
    renumber(path, lambda name: re.sub("/(?=[^/]*$)", "_1/", name))  # conv1/conv_1/kernel:0
    assert same_logits(import_weights("chexnet_keras_h5", path, input_size=32), model)


def test_import_weights_keras_lists_in_pieces_are_joined(tmp_path, model):
    path = tmp_path / "chexnet.h5"
    keras_model(model, nested=False).save_weights(path)
    with h5py.File(path, "r+") as file:
        names = file.attrs["layer_names"]
        del file.attrs["layer_names"]
        file.attrs["layer_names0"], file.attrs["layer_names1"] = names[:9], names[9:]
    assert same_logits(import_weights("chexnet_keras_h5", path, input_size=32), model)


def test_import_weights_h5_that_leads_out_of_the_file_is_refused(tmp_path, model):
    path = tmp_path / "chexnet.h5"
    keras_model(model, nested=False).save_weights(path)
    with h5py.File(path, "r+") as file:
        del file["bn/bn/gamma:0"]
        file["bn/bn/gamma:0"] = h5py.ExternalLink("elsewhere.h5", "/secret")
    with pytest.raises(ModelFileError, match=r"chexnet\.h5: its entry bn/gamma:0 is missing or leads out of the file"):
        import_weights("chexnet_keras_h5", path, input_size=32)


@pytest.mark.parametrize(
    ("content", "message"),
    [(b"none", "no HDF5 file that Keras wrote"), (None, "none of Keras weights: it has no layer_names")],
)
def test_import_weights_h5_of_another_kind_is_an_error(tmp_path, content, message):
    path = tmp_path / "other.h5"
    if content is None:
        h5py.File(path, "w").close()
    else:
        path.write_bytes(content)
    with pytest.raises(ModelFileError, match=message):
        import_weights("chexnet_keras_h5", path)


def test_import_weights_h5_of_keras_1_is_refused_with_a_way_on(tmp_path):
    with h5py.File(tmp_path / "old.h5", "w") as file:
        file.create_group("model_weights").attrs["keras_version"] = b"1.2.2"
    with pytest.raises(ModelFileError, match=r"old\.h5: it was saved by Keras 1\.2\.2: open it in Keras 2\.0 to 2\.2"):
        import_weights("chexnet_keras_h5", tmp_path / "old.h5")


def test_import_weights_h5_with_two_heads_is_an_error(tmp_path, model):
    flat = keras_model(model, nested=False)
    two = keras.Model(flat.input, [flat.output, keras.layers.Dense(3, name="age")(flat.layers[-2].output)])
    two.save_weights(tmp_path / "two.h5")
    with pytest.raises(ModelFileError, match=r"two heads|no DenseNet with one head"):
        import_weights("chexnet_keras_h5", tmp_path / "two.h5")
