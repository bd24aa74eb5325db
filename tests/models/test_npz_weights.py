"""Weights from .npz: all of them in their place, or an error and an untouched model."""

from __future__ import annotations

import csv

import numpy as np
import pytest

from cxr_compress.device.preprocess import PreprocessSpec, load_uint8, normalize
from cxr_compress.errors import ModelFileError
from cxr_compress.keras2 import keras
from cxr_compress.metrics import auroc
from cxr_compress.models import ModelAbout, build, chexnet, import_weights
from cxr_compress.models.npz_weights import load_npz_weights, read_npz_about, save_npz_weights
from tests.models.test_chexnet import random_weights


def small_net(num_classes: int = 1) -> keras.Model:
    return chexnet(num_classes, (32, 32, 3), width=0.1, blocks=(1, 1))


def arrays_of(model: keras.Model, weights) -> dict[str, np.ndarray]:
    """As a training script would write them: the head under a name of its own, in half precision."""
    names = [variable.name.replace("logits/", "dense/") for variable in model.weights]
    return {f"{i:03d}|{name}": w.astype(np.float16) for i, (name, w) in enumerate(zip(names, weights, strict=True))}


@pytest.fixture(scope="module")
def arrays():
    model = small_net()
    return arrays_of(model, random_weights(model))


def written(folder, arrays):
    path = folder / "weights.npz"
    np.savez(path, **arrays)
    return path


def test_load_npz_weights_matching_file_sets_every_variable(arrays, tmp_path):
    model = small_net()
    report = load_npz_weights(model, written(tmp_path, arrays))
    for weight, array in zip(model.get_weights(), arrays.values(), strict=True):
        np.testing.assert_array_equal(weight, array.astype(np.float32))
    assert report.arrays == len(arrays)
    assert report.parameters == model.count_params()
    assert report.stored_dtype == "float16"
    assert report.renamed == {"dense/kernel:0": "logits/kernel:0", "dense/bias:0": "logits/bias:0"}


def missing_one(arrays):
    return dict(list(arrays.items())[:-1])


def swapped_neighbors(arrays):
    """Two arrays of equal shape trade places: gamma and beta of the first batch norm."""
    items = list(arrays.items())
    items[1], items[2] = items[2], items[1]
    return dict(items)


def renamed_layer(arrays):
    return {key.replace("conv1/conv", "stem/conv"): array for key, array in arrays.items()}


def other_index(arrays):
    return {key.replace("001|", "900|"): array for key, array in arrays.items()}


def another_head(arrays):
    return {key: np.repeat(a, 14, -1) if "dense" in key else a for key, a in arrays.items()}


def not_finite(arrays):
    return {key: np.full_like(a, np.inf) if "dense/bias" in key else a for key, a in arrays.items()}


def integers(arrays):
    return {key: a.astype(np.int8) if "dense/bias" in key else a for key, a in arrays.items()}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (missing_one, r"holds \d+ arrays, the model has \d+ variables: build the model with the width"),
        (swapped_neighbors, r"expected array 001\|conv1/bn/gamma:0, got 002\|conv1/bn/beta:0"),
        (renamed_layer, r"expected array 000\|conv1/conv/kernel:0, got 000\|stem/conv/kernel:0"),
        (other_index, r"expected array 001\|conv1/bn/gamma:0, got 900\|conv1/bn/gamma:0"),
        (another_head, r"dense/kernel:0 has shape \(\d+, 14\), the model needs \(\d+, 1\): set the number of findings"),
        (not_finite, r"dense/bias:0 \(float16\) must hold finite float16 or float32 numbers"),
        (integers, r"dense/bias:0 \(int8\) must hold finite float16 or float32 numbers"),
    ],
)
def test_load_npz_weights_file_of_another_network_is_an_error_and_changes_nothing(arrays, tmp_path, change, message):
    model = small_net()
    before = model.get_weights()
    with pytest.raises(ModelFileError, match=message):
        load_npz_weights(model, written(tmp_path, change(arrays)))
    for old, new in zip(before, model.get_weights(), strict=True):
        np.testing.assert_array_equal(old, new)


def test_load_npz_weights_missing_file_is_an_error(tmp_path):
    with pytest.raises(ModelFileError, match=r"none\.npz does not exist"):
        load_npz_weights(small_net(), tmp_path / "none.npz")


@pytest.mark.parametrize("content", [b"", b"not an archive", None])
def test_load_npz_weights_damaged_file_is_an_error(arrays, tmp_path, content):
    path = written(tmp_path, arrays)
    path.write_bytes(path.read_bytes()[:2000] if content is None else content)
    with pytest.raises(ModelFileError, match=r"no complete \.npz archive of plain arrays"):
        load_npz_weights(small_net(), path)


def test_load_npz_weights_pickled_objects_are_refused(arrays, tmp_path):
    path = tmp_path / "objects.npz"
    np.savez(path, **{**arrays, "000|conv1/conv/kernel:0": np.array([{}], dtype=object)})
    with pytest.raises(ModelFileError, match=r"no complete \.npz archive of plain arrays"):
        load_npz_weights(small_net(), path)


def test_save_npz_weights_file_is_what_load_reads_and_has_equal_bytes_for_equal_weights(tmp_path):
    model, again = small_net(), small_net()
    model.set_weights(random_weights(model))
    for name in ("a.npz", "b.npz"):
        save_npz_weights(model, tmp_path / name)
    assert (tmp_path / "a.npz").read_bytes() == (tmp_path / "b.npz").read_bytes()
    assert load_npz_weights(again, tmp_path / "a.npz").renamed == {}
    for old, new in zip(model.get_weights(), again.get_weights(), strict=True):
        np.testing.assert_array_equal(new, old.astype(np.float16).astype(np.float32))


def test_save_npz_weights_number_beyond_float16_is_an_error_and_writes_nothing(tmp_path):
    model = small_net()
    model.layers[-1].bias.assign([7e4])
    with pytest.raises(ModelFileError, match=r"logits/bias:0 holds numbers beyond float16 \(65504\)"):
        save_npz_weights(model, tmp_path / "w.npz")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.densenet
def test_load_npz_weights_trained_densenet121_ranks_real_images(cxr_data):
    weights = cxr_data.parent / "weights" / "kermany_densenet121_fp16.npz"
    if not weights.exists():
        pytest.skip("the trained DenseNet121 is not beside the X-rays: weights/kermany_densenet121_fp16.npz")
    folder = cxr_data / "kermany224"
    with (folder / "labels.csv").open(newline="") as file:
        rows = [row for row in csv.DictReader(file) if row["split"] == "test"]
    rows = rows[::13]
    sick = np.array([row["label"] == "PNEUMONIA" for row in rows], np.float32)
    assert 10 <= sick.sum() <= len(sick) - 10
    spec = PreprocessSpec(112, 112)
    images = normalize(np.stack([load_uint8(folder / row["path"], spec) for row in rows]), spec)
    model = chexnet(1, (112, 112, 3))
    load_npz_weights(model, weights)
    # 0.967 on all 624 test images; 0.9 leaves room for the luck of 48 of them, and none for a wrong weight order.
    assert auroc(sick, model.predict(images, batch_size=16, verbose=0)[:, 0]) > 0.9


def test_npz_weights_that_say_what_they_are_import_without_being_told(tmp_path):
    about = ModelAbout(("A", "B"), PreprocessSpec.preset("unit", 48, 48), dataset="d", pos_weight=(2.0, 3.0))
    model = build("tiny_chexnet", 2, (48, 48, 3))
    save_npz_weights(model, tmp_path / "w.npz", about=about)
    imported = import_weights("npz", tmp_path / "w.npz")
    assert imported.about == about
    assert (imported.model.name, imported.model.input_shape) == ("tiny_chexnet", (None, 48, 48, 3))
    for one, other in zip(model.get_weights(), imported.model.get_weights(), strict=True):
        np.testing.assert_array_equal(one.astype(np.float16), other)
    larger = import_weights("npz", tmp_path / "w.npz", input_size=64, findings=("C", "D"))
    assert larger.model.input_shape == (None, 64, 64, 3)
    assert (larger.about.preprocess.height, larger.about.findings) == (64, ("C", "D"))
    assert read_npz_about(tmp_path / "w.npz") == ("tiny_chexnet", about)
    save_npz_weights(model, tmp_path / "alone.npz")
    assert read_npz_about(tmp_path / "alone.npz") is None
