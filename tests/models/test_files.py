"""Model files: equal bytes for equal models, nothing of time or training in them, and clear refusals."""

from __future__ import annotations

import json
import warnings
import zipfile

import h5py
import numpy as np
import pytest

from cxr_compress.device.spec import PreprocessSpec
from cxr_compress.errors import CompressionError, ModelFileError
from cxr_compress.keras2 import keras
from cxr_compress.models import chexnet
from cxr_compress.models.about import ModelAbout
from cxr_compress.models.files import load_model, read_about, require_model, save_model


def small_net(seed: int = 0) -> keras.Model:
    keras.utils.set_random_seed(seed)
    return chexnet(2, (32, 32, 3), width=0.1, blocks=(1, 1))


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    path = tmp_path_factory.mktemp("model") / "net.keras"
    save_model(small_net(), path)
    return path


def edited(source, target, name, change):
    """Copy an archive with one entry changed."""
    with zipfile.ZipFile(source) as old, zipfile.ZipFile(target, "w") as new:
        for entry in old.namelist():
            content = old.read(entry)
            new.writestr(entry, change(content) if entry == name else content)
    return target


def test_save_model_equal_weights_give_equal_bytes(saved, tmp_path):
    again, other = tmp_path / "again.keras", tmp_path / "other.keras"
    save_model(small_net(), again)
    save_model(small_net(seed=1), other)
    assert again.read_bytes() == saved.read_bytes()
    assert other.read_bytes() != saved.read_bytes()


def test_save_model_file_holds_no_time_and_no_place(saved):
    with zipfile.ZipFile(saved) as archive:
        assert {entry.date_time for entry in archive.infolist()} == {(1980, 1, 1, 0, 0, 0)}
        assert list(json.loads(archive.read("metadata.json"))) == ["keras_version"]
    assert str(saved.parent).encode() not in saved.read_bytes()


def test_save_model_plain_keras_loads_it_with_equal_outputs(saved):
    model = small_net()
    x = np.random.default_rng(0).normal(size=(2, 32, 32, 3)).astype(np.float32)
    for loaded in (keras.models.load_model(saved), load_model(saved)):
        np.testing.assert_array_equal(loaded(x).numpy(), model(x).numpy())
        assert getattr(loaded, "optimizer", None) is None


def test_save_model_compiled_model_leaves_the_optimizer_out_and_the_model_as_it_was(saved, tmp_path):
    model = small_net()
    model.compile("adam", "mse")
    model.optimizer.build(model.trainable_variables)
    path = tmp_path / "compiled.keras"
    save_model(model, path)
    assert path.read_bytes() == saved.read_bytes()
    assert model.optimizer is not None


def test_save_model_other_ending_is_an_error(tmp_path):
    with pytest.raises(CompressionError, match=r"expected a file name that ends in \.keras, got net\.h5"):
        save_model(small_net(), tmp_path / "net.h5")


def test_load_model_missing_file_is_an_error(tmp_path):
    with pytest.raises(ModelFileError, match=r"none\.keras does not exist"):
        load_model(tmp_path / "none.keras")


def test_load_model_other_kind_of_file_is_an_error(tmp_path):
    with pytest.raises(ModelFileError, match=r"expected a Keras file \(\.keras, \.h5, \.hdf5\), got net\.onnx"):
        load_model(tmp_path / "net.onnx")
    (tmp_path / "saved").mkdir()
    (tmp_path / "saved" / "saved_model.pb").write_bytes(b"")
    with pytest.raises(ModelFileError, match=r"got the SavedModel .*: use --saved_model_dir of cxr_convert"):
        load_model(tmp_path / "saved")


@pytest.mark.parametrize("share", [0.0, 0.3, 0.99])
def test_load_model_truncated_file_is_an_error(saved, tmp_path, share):
    path = tmp_path / "cut.keras"
    content = saved.read_bytes()
    path.write_bytes(content[: int(share * len(content))])
    with pytest.raises(ModelFileError, match=r"cut\.keras(: is empty; copy| is no complete \.keras file .*: copy )"):
        load_model(path)


def test_load_model_flipped_byte_is_an_error(saved, tmp_path):
    content = bytearray(saved.read_bytes())
    content[len(content) // 2] ^= 1
    path = tmp_path / "flipped.keras"
    path.write_bytes(content)
    with pytest.raises(ModelFileError, match=r"is damaged \(its part model\.weights\.h5 fails its checksum\)"):
        load_model(path)


def save_h5(model, path):
    with warnings.catch_warnings():
        # tf_keras/src/engine/training.py advises the .keras format on every save to .h5.
        warnings.filterwarnings("ignore", "You are saving your model as an HDF5 file", UserWarning)
        model.save(path)


def test_load_model_hdf5_gives_the_model_that_was_saved(tmp_path):
    model = small_net()
    save_h5(model, tmp_path / "net.h5")
    loaded = load_model(tmp_path / "net.h5")
    assert all(np.array_equal(a, b) for a, b in zip(loaded.get_weights(), model.get_weights(), strict=True))


def test_load_model_hdf5_that_is_none_or_holds_weights_only_is_an_error(tmp_path):
    (tmp_path / "junk.h5").write_bytes(b"not a model")
    with pytest.raises(ModelFileError, match=r"junk\.h5 is no complete HDF5 file"):
        load_model(tmp_path / "junk.h5")
    small_net().save_weights(tmp_path / "weights.h5")
    with pytest.raises(ModelFileError, match=r"weights\.h5 holds weights but no model"):
        load_model(tmp_path / "weights.h5")


@pytest.mark.parametrize("version", ["1.2.2", b"1.0.8", None])
def test_load_model_hdf5_of_keras_1_gets_advice_that_can_be_followed_there(tmp_path, version):
    layer = {"class_name": "Convolution2D", "config": {"name": "a", "nb_filter": 4, "nb_row": 3, "border_mode": "same"}}
    with h5py.File(tmp_path / "old.h5", "w") as file:
        file.attrs["model_config"] = json.dumps({"class_name": "Sequential", "config": [layer]})
        if version:
            file.attrs["keras_version"] = version
    said = {"1.2.2": "1.2.2", b"1.0.8": "1.0.8", None: "1.x"}[version]
    with pytest.raises(
        ModelFileError, match=rf"^old\.h5 was saved by Keras {said}, [^\n]*Keras 2\.0 to 2\.2[^\n]*$"
    ) as caught:
        load_model(tmp_path / "old.h5")
    assert "Keras 3" not in str(caught.value)


def test_load_model_hdf5_of_keras_2_with_a_version_in_bytes_is_told_apart(tmp_path):
    layer = {"class_name": "Dense", "config": {"name": "a", "units": 4, "odd": 1, "batch_input_shape": [None, 3]}}
    with h5py.File(tmp_path / "two.h5", "w") as file:
        file.attrs["model_config"] = json.dumps({"class_name": "Sequential", "config": [layer]})
        file.attrs["keras_version"] = b"2.2.4"
    with pytest.raises(ModelFileError, match=r"two\.h5 could not be rebuilt: .*odd"):
        load_model(tmp_path / "two.h5")


def test_load_model_with_spectral_normalization_says_what_to_save_instead(tmp_path):
    conv = keras.layers.SpectralNormalization(keras.layers.Conv2D(2, 3))
    model = keras.Sequential([keras.Input((8, 8, 3)), conv])
    model.save(tmp_path / "spectral.keras")
    save_h5(model, tmp_path / "spectral.h5")
    for name in ("spectral.keras", "spectral.h5"):
        with pytest.raises(
            ModelFileError, match="has a SpectralNormalization layer, which Keras 2 saves and cannot load"
        ):
            load_model(tmp_path / name)


def test_load_model_hdf5_with_a_lambda_runs_no_code(tmp_path):
    save_h5(keras.Sequential([keras.layers.Lambda(lambda x: x * 2, input_shape=(3,))]), tmp_path / "lambda.h5")
    with pytest.raises(ModelFileError, match=r"lambda\.h5 has a Lambda layer, whose code is not run"):
        load_model(tmp_path / "lambda.h5")


def test_load_model_file_of_keras_3_that_tf_keras_can_read_loads(saved, tmp_path):
    path = edited(saved, tmp_path / "three.keras", "metadata.json", lambda old: b'{"keras_version": "3.12.0"}')
    assert np.array_equal(load_model(path).get_weights()[0], load_model(saved).get_weights()[0])


def test_load_model_weights_of_another_network_in_the_file_are_an_error(saved, tmp_path):
    """As a script leaves it that puts the weights of one training into the configuration of another."""
    keras.utils.set_random_seed(0)
    save_model(chexnet(2, (32, 32, 3), width=0.2, blocks=(1, 1)), tmp_path / "wide.keras")
    with zipfile.ZipFile(tmp_path / "wide.keras") as archive:
        weights = archive.read("model.weights.h5")
    path = edited(saved, tmp_path / "mixed.keras", "model.weights.h5", lambda old: weights)
    with pytest.raises(ModelFileError, match=r"mixed\.keras could not be rebuilt: .*shape") as caught:
        load_model(path)
    assert "\n" not in str(caught.value)


def test_load_model_given_a_model_says_that_it_is_one():
    with pytest.raises(CompressionError, match=r"expected the path of a model file, got the model chexnet itself"):
        load_model(small_net())
    with pytest.raises(CompressionError, match="expected a Keras model, got int: load a file with load_model"):
        load_model(3)


def test_require_model_subclassed_or_unbuilt_model_is_an_error():
    class Own(keras.Model):
        pass

    require_model(small_net())
    with pytest.raises(CompressionError, match=r"got Own own, whose wiring is code \(subclassed\): rebuild it with"):
        require_model(Own(name="own"))
    with pytest.raises(CompressionError, match="expected a built model, got the Sequential net without an input"):
        require_model(keras.Sequential([keras.layers.Dense(2)], name="net"))


def test_load_model_class_outside_keras_is_refused_before_its_module_is_imported(saved, tmp_path):
    def foreign(content):
        config = json.loads(content)
        config["config"]["layers"][1]["module"] = "antigravity"  # opens a web browser when it is imported
        return json.dumps(config).encode()

    path = edited(saved, tmp_path / "foreign.keras", "config.json", foreign)
    with pytest.raises(ModelFileError, match="needs the class ZeroPadding2D, which is not one of Keras"):
        load_model(path)


def test_load_model_custom_layer_is_an_error(tmp_path):
    class Doubled(keras.layers.Layer):
        def call(self, inputs):
            return inputs * 2

    path = tmp_path / "custom.keras"
    save_model(keras.Sequential([Doubled(input_shape=(3,))]), path)
    with pytest.raises(ModelFileError, match="needs the class Doubled, which is not one of Keras: rebuild the model"):
        load_model(path)


def test_load_model_lambda_layer_is_an_error(tmp_path):
    path = tmp_path / "lambda.keras"
    save_model(keras.Sequential([keras.layers.Lambda(lambda x: x * 2, input_shape=(3,))]), path)
    with pytest.raises(ModelFileError, match=r"lambda\.keras could not be rebuilt: .*standard Keras layers"):
        load_model(path)


@pytest.mark.parametrize("suffix", [".keras", ".h5"])
def test_load_model_layers_that_only_keras_applications_define_load(tmp_path, suffix):
    """ConvNeXt's LayerScale is registered nowhere: plain Keras cannot load what plain Keras saved."""
    net = keras.src.applications.convnext.ConvNeXt(
        depths=(1, 1, 1, 1), projection_dims=(8, 8, 16, 16), weights=None, input_shape=(32, 32, 3), classes=2,
        model_name="convnext_shrunk", include_preprocessing=False,
    )  # fmt: skip
    images = np.random.default_rng(0).normal(size=(2, 32, 32, 3)).astype(np.float32)
    path = tmp_path / f"net{suffix}"
    save_h5(net, path) if suffix == ".h5" else net.save(path)
    with pytest.raises((TypeError, ValueError)):
        keras.models.load_model(path, compile=False)
    np.testing.assert_array_equal(load_model(path)(images), net(images))


def classifier_of(outputs: int, activation: str | None) -> keras.Model:
    return keras.Sequential([keras.layers.Flatten(input_shape=(4, 4, 1)), keras.layers.Dense(outputs, activation)])


@pytest.mark.parametrize(
    ("outputs", "ends_in", "said"),
    [
        (2, "softmax", {"findings": ("Pneumonia",), "positive": 1}),
        (2, "softmax", {"findings": ("normal", "Pneumonia"), "positive": 1}),
        (2, "softmax", {"findings": ("normal", "Pneumonia")}),
        (2, None, {"findings": ("Pneumonia",), "positive": 0, "activation": "softmax"}),
        (3, "softmax", {"findings": ("a", "b", "c")}),
        (3, None, {"findings": ("a", "b", "c"), "activation": "softmax"}),
        (2, "sigmoid", {"findings": ("a", "b")}),
    ],
)
def test_save_model_keeps_what_is_said_of_classes(tmp_path, outputs, ends_in, said):
    about = ModelAbout(preprocess=PreprocessSpec(4, 4), **said)
    save_model(classifier_of(outputs, ends_in), tmp_path / "net.keras", about=about)
    assert read_about(tmp_path / "net.keras") == about


@pytest.mark.parametrize(
    ("outputs", "ends_in", "said", "message"),
    [
        (2, "softmax", {"findings": ("Pneumonia",)}, "about names one finding, 'Pneumonia': say which class that is"),
        (2, "sigmoid", {"findings": ("a",), "positive": 1}, "2 outputs that are no such pair: leave positive out"),
        (2, "sigmoid", {"findings": ("a",)}, "2 logits, about names 1 findings"),
        (3, "softmax", {"findings": ("a", "b")}, "3 logits, about names 2 findings"),
        (3, "softmax", {"findings": ("a", "b", "c"), "positive": 1}, "3 outputs that are no such pair"),
        (1, None, {"findings": ("a",), "activation": "softmax"}, "need two or more outputs, the model gives 1"),
    ],
)
def test_save_model_refuses_what_is_said_of_other_classes(tmp_path, outputs, ends_in, said, message):
    about = ModelAbout(preprocess=PreprocessSpec(4, 4), **said)
    with pytest.raises(CompressionError, match=message):
        save_model(classifier_of(outputs, ends_in), tmp_path / "net.keras", about=about)
    assert not (tmp_path / "net.keras").exists()
