"""A given softmax of three classes through the pipeline: it stays the user's model, each image gets one class."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import cv2
import numpy as np
import pytest
from sklearn.metrics import balanced_accuracy_score, roc_auc_score

from cxr_compress.data import decode_split, load_dataset
from cxr_compress.device.classifier import Classifier
from cxr_compress.device.modelfile import read_model
from cxr_compress.device.preprocess import PreprocessSpec, normalize
from cxr_compress.device.verify import verify_model
from cxr_compress.errors import DataError
from cxr_compress.keras2 import keras
from cxr_compress.models.files import load_model, read_about
from cxr_compress.pipeline import run_recipe
from cxr_compress.recipe import make_recipe
from cxr_compress.report import render_report
from cxr_compress.report.cards import render_delivered_card
from tests.nets import conv_bn, enliven

CLASSES = ("bacteria", "normal", "virus")
SPEC = PreprocessSpec(16, 16)
RECIPE = make_recipe(
    "user",
    {
        "dataset": "csv",
        "input_size": 16,
        "recovery_epochs": 1,
        "weight_sparsity": 0.0,
        "target_macs": 0.7,
        "calibration_images": 16,
        "bootstrap_samples": 50,
        "options": {"class_column": "kind"},
        **{"match": "position", "preset": "imagenet_torch"},  # the file says neither
    },
)


@pytest.fixture(scope="module")
def images(tmp_path_factory) -> Path:
    """Drawn images of three brightnesses with much noise, and a table that names the class of each."""
    folder = tmp_path_factory.mktemp("images")
    rng = np.random.default_rng(0)
    with (folder / "table.csv").open("w", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(["path", "kind", "zeros", "patient_id", "split"])
        for number in range(180):
            kind = int(rng.integers(3))
            image = np.clip(rng.normal(90 + 30 * kind, 45, (16, 16)) + rng.normal(0, 25), 0, 255).astype(np.uint8)
            cv2.imwrite(str(folder / f"{number}.png"), image)
            part = ("train", "train", "dev", "test")[number % 4]
            rows.writerow([f"{number}.png", CLASSES[kind], 0, f"p{number}", part])
    return folder


@pytest.fixture(scope="module")
def user_model(images, tmp_path_factory) -> Path:
    """A plain Keras file that says nothing of itself, as a stranger's does."""
    keras.utils.set_random_seed(0)
    image = keras.Input((16, 16, 3))
    x = keras.layers.GlobalAveragePooling2D()(conv_bn(conv_bn(image, 16, "a"), 16, "b"))
    model = enliven(keras.Model(image, keras.layers.Dense(3, activation="softmax", name="classes")(x), name="user"))
    data = load_dataset("csv", images, options=RECIPE.data.options).train
    model.compile(keras.optimizers.Adam(1e-2), "categorical_crossentropy")
    model.fit(normalize(decode_split(data, SPEC), SPEC), data.labels, epochs=8, verbose=0)
    path = tmp_path_factory.mktemp("user") / "user.keras"
    model.save(path)
    return path


@pytest.fixture(scope="module")
def finished(images, user_model, tmp_path_factory):
    folder = tmp_path_factory.mktemp("run")
    report = run_recipe(RECIPE, data_dir=images, output_dir=folder, keras_model_file=user_model)
    return folder, report


def test_original_row_is_the_model_that_was_given(finished, images, user_model):
    folder, report = finished
    test = load_dataset("csv", images, options=RECIPE.data.options).test
    pixels = decode_split(test, SPEC)
    given = load_model(user_model)
    shares = given.predict(normalize(pixels, SPEC), verbose=0)
    classifier = Classifier(folder / "user_fp32.tflite")
    found = np.stack([classifier.predict(image).probabilities for image in pixels])
    # The same float32 sums in another order; the control is the softmax of another image, or sigmoids of the logits.
    np.testing.assert_allclose(found, shares, atol=1e-5)
    assert np.abs(found[1:] - shares[:-1]).max() > 0.1
    logits = np.stack([classifier.predict(image).logits for image in pixels])
    assert np.abs(1 / (1 + np.exp(-logits)) - shares).max() > 0.1
    measured = report["rows"][0]["evaluation"]
    truth, said = test.labels.argmax(axis=1), shares.argmax(axis=1)
    assert measured["classes"]["accuracy"]["value"] == pytest.approx((truth == said).mean())
    assert measured["classes"]["balanced_accuracy"]["value"] == pytest.approx(balanced_accuracy_score(truth, said))
    assert 0.5 < (truth == said).mean() < 1, "neither a guess nor trivial"
    for k, name in enumerate(CLASSES):
        expected = roc_auc_score(truth == k, shares[:, k])
        # One pair of images whose shares differ in the last bit may change its order.
        assert measured["findings"][name]["auroc"]["value"] == pytest.approx(expected, abs=0.005)


def test_every_file_gives_every_image_exactly_one_class(finished, images):
    folder, report = finished
    test = load_dataset("csv", images, options=RECIPE.data.options).test
    for row in report["rows"]:
        path = folder / row["file"]
        classifier = Classifier(path)
        assert classifier.info.activation == "softmax"
        assert classifier.labels == CLASSES
        found = [classifier.predict(image) for image in test.paths]
        assert {sum(one.positive) for one in found} == {1}
        assert max(abs(one.probabilities.sum() - 1) for one in found) < 1e-6
        right = [one.predicted == CLASSES[k] for one, k in zip(found, test.labels.argmax(axis=1), strict=True)]
        assert np.mean(right) == pytest.approx(row["evaluation"]["classes"]["accuracy"]["value"])
        assert verify_model(path).passed
    compressed = read_model(folder / report["rows"][2]["file"]).info
    assert len(set(compressed.logit_slope)) == 1
    assert compressed.calibration_source.startswith("temperature scaling (one slope for all classes) fitted on")
    assert "softmax of slope * logit + offset" in compressed.model_card
    original = read_model(folder / "user_int8.tflite").info
    assert (original.logit_slope, original.logit_offset) == ((1.0,) * 3, (0.0,) * 3)


def test_every_stage_knows_that_the_classes_exclude_one_another(finished):
    folder, report = finished
    for path in folder.glob("*.keras"):
        assert read_about(path).activation == "softmax", path.name
        assert read_about(path).pos_weight == (1.0,) * 3, "a given model says of no weights: none move its shares"
    history = json.loads((folder / "manifests" / "recover.json").read_text())
    assert "dev_accuracy" in json.dumps(history)
    assert set(report["facts"]["gate"]["balanced_accuracy"]) >= {"loss", "upper_bound", "power", "holds"}
    text = render_report(report)
    model = read_model(folder / report["rows"][2]["file"])
    card = render_delivered_card(report, model, file_name="small.tflite")
    assert "the classes exclude one another: probabilities = softmax" in card
    assert "positive from" not in card
    for said in ("Classes that exclude one another", "called virus", "balanced accuracy", "Both must hold"):
        assert said in text, said


def test_images_of_several_classes_are_refused_before_any_is_read(images, user_model, tmp_path):
    table = tmp_path / "wrong.csv"
    lines = (images / "table.csv").read_text().splitlines()
    rows = []
    for line in lines[1:]:
        path, kind, *_, part = line.split(",")
        rows.append(f"{path},{int(kind != 'normal')},{int(kind == 'normal')},{int(kind == 'virus')},{part}")
    table.write_text("\n".join(["path,bacteria,normal,virus,split", *rows]) + "\n")
    options = {"table": str(table), "findings": "bacteria|normal|virus"}
    told: list[str] = []
    recipe = RECIPE.with_values(options=options)
    with pytest.raises(
        DataError, match=r"\(bacteria, normal, virus\) need exactly one .* 0 have none and \d+ have several"
    ):
        run_recipe(
            recipe,
            data_dir=images,
            output_dir=tmp_path / "run",
            keras_model_file=user_model,
            decoding=lambda *of: told.append(str(of)),
        )
    assert told == []
