"""Training of classes that exclude one another: the loss against sums in numpy, and whole small trainings."""

from __future__ import annotations

import dataclasses

import cv2
import numpy as np
import pytest
import tensorflow as tf

from cxr_compress.errors import CompressionError, DataError
from cxr_compress.keras2 import keras
from cxr_compress.metrics import softmax
from cxr_compress.models import ModelAbout, load_model, read_about, save_model
from cxr_compress.train import CategoricalCrossEntropy, FitConfig, class_weights, fit, predict_logits
from cxr_compress.train.config import TrainingPlan
from cxr_compress.train.dev_score import DevScore
from cxr_compress.train.losses import distillation_loss, make_loss
from cxr_compress.train.step import Objective
from cxr_compress.train.training import Listeners, TrainingFiles, run_training
from tests.train.images import FINDINGS, SPEC, drawn_images, small_net

NAN = float("nan")
CONFIG = FitConfig(epochs=2, batch_size=16, learning_rate=1e-2, augment=False, activation="softmax")


def one_spot(count: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Images with exactly one of the two spots."""
    images, labels = drawn_images(3 * count, seed)
    one = np.flatnonzero(labels.sum(axis=1) == 1)[:count]
    return images[one], labels[one]


def written_out(labels: np.ndarray, logits: np.ndarray, weights: np.ndarray) -> float:
    """The formula, image by image."""
    rows = [-sum(weights * y * np.log(softmax(z))) for y, z in zip(labels, logits.astype(np.float64), strict=True)]
    return float(np.mean(rows))


@pytest.fixture(scope="module")
def table() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    labels = np.eye(3, dtype=np.float32)[rng.integers(0, 3, 9)]
    labels[4] = [0.25, 0.5, 0.25]
    return labels, rng.normal(0, 3, (9, 3)).astype(np.float32), np.array([0.5, 1.0, 4.0])


def test_categorical_loss_is_the_formula(table):
    labels, logits, weights = table
    value = float(CategoricalCrossEntropy(weights)(labels, logits))
    assert value == pytest.approx(written_out(labels, logits, weights), rel=1e-5)  # float32 sums
    assert value != pytest.approx(written_out(labels, logits, weights[::-1]), rel=1e-2)
    smooth = 0.7 * labels + 0.1
    value = float(CategoricalCrossEntropy(weights, label_smoothing=0.3)(labels, logits))
    assert value == pytest.approx(written_out(smooth, logits, weights), rel=1e-5)


def test_categorical_loss_leaves_images_of_unknown_class_out_of_value_and_gradient(table):
    labels, logits, weights = table
    partly = labels.copy()
    partly[[1, 5]] = NAN
    partly[7, 2] = NAN
    known = [0, 2, 3, 4, 6, 8]
    variable = tf.Variable(logits)
    with tf.GradientTape() as tape:
        value = CategoricalCrossEntropy(weights, masked=True)(partly, variable)
    assert float(value) == pytest.approx(written_out(labels[known], logits[known], weights), rel=1e-5)
    gradient = np.abs(tape.gradient(value, variable).numpy()).sum(axis=1)
    assert sorted(np.flatnonzero(gradient)) == known
    assert np.isnan(float(CategoricalCrossEntropy(weights)(partly, logits))), "control"
    nobody = np.full((2, 3), NAN, np.float32)
    assert float(CategoricalCrossEntropy(weights, masked=True)(nobody, logits[:2])) == 0


def test_categorical_loss_adds_the_logs_of_its_weights_to_the_logits():
    """What the device's offsets undo: with balanced weights a class of 1 in 5 is learned as even odds."""
    labels = np.eye(2, dtype=np.float32)[[1, 0, 0, 0, 0]]
    weights = class_weights(labels)
    np.testing.assert_allclose(weights, [5 / 8, 5 / 2])
    loss, plain = CategoricalCrossEntropy(weights), CategoricalCrossEntropy(np.ones(2))
    at = {z: float(loss(labels, np.tile(np.float32([0, z]), (5, 1)))) for z in (-0.2, 0.0, 0.2)}
    assert min(at, key=at.get) == 0.0
    learnt = np.log(weights[1] / weights[0]) + np.log(1 / 4)
    assert learnt == pytest.approx(0.0, abs=1e-6)
    assert float(plain(labels, np.tile(np.float32([0, np.log(0.25)]), (5, 1)))) < float(plain(labels, np.zeros((5, 2))))


def test_class_weights_refuse_a_class_without_images_and_rows_of_several():
    with pytest.raises(DataError, match="column 2 of the labels has none among 3 classes and 2 images"):
        class_weights(np.eye(3)[:2])
    with pytest.raises(DataError, match="1 have several"):
        class_weights(np.array([[1, 1, 0], [0, 0, 1.0]]))


def test_distillation_of_classes_is_least_at_the_teacher_whatever_all_logits_share():
    theirs = np.random.default_rng(1).normal(0, 2, (20, 3))
    here = float(distillation_loss(theirs, theirs, "softmax"))
    entropy = -np.mean((softmax(theirs) * np.log(softmax(theirs))).sum(axis=1))
    assert here == pytest.approx(entropy)
    assert float(distillation_loss(theirs, theirs + 5, "softmax")) == pytest.approx(here)
    assert float(distillation_loss(theirs, theirs + 5)) > 1.2 * float(distillation_loss(theirs, theirs)), "control"
    assert float(distillation_loss(theirs, theirs[::-1].copy(), "softmax")) > 1.2 * here


def test_dev_score_ranks_by_shares_and_counts_right_classes():
    labels = np.eye(3)[[0, 1, 2, 0]]
    logits = np.array([[2.0, 1, 0], [0, 2, 1], [3, 0, 1], [9, 8, 8]], np.float32)
    loss = make_loss(CONFIG, np.ones(3), labels)
    found = DevScore(labels, ("a", "b", "c"), Objective(loss, "softmax", distill_weight=0.5), logits).of(logits)
    assert found["dev_accuracy"] == 0.75
    assert found["dev_loss"] == pytest.approx(written_out(labels, logits, np.ones(3)), rel=1e-5)
    assert found["auroc"]["b"] == 1.0, "8 of a row with a 9 is no more of b than 2 of a row with a 1"
    assert "dev_accuracy" not in DevScore(labels, ("a", "b", "c"), Objective(loss)).of(logits)


def test_fit_of_classes_learns_resumes_and_refuses_what_does_not_fit(tmp_path):
    train, dev = one_spot(96, 1), one_spot(40, 2)
    model = small_net()
    result = fit(model, train, dev, SPEC, CONFIG, tmp_path / "run", findings=FINDINGS)
    images, labels = one_spot(60, 3)
    right = predict_logits(model, images, SPEC).argmax(axis=1) == labels.argmax(axis=1)
    assert right.mean() > 0.8
    assert (predict_logits(small_net(), images, SPEC).argmax(axis=1) == labels.argmax(axis=1)).mean() < 0.7, "control"
    assert [set(entry) >= {"dev_accuracy", "dev_auroc"} for entry in result.history] == [True, True]
    again = small_net()
    fit(again, train, dev, SPEC, CONFIG, tmp_path / "run", findings=FINDINGS)
    for ours, theirs in zip(again.get_weights(), model.get_weights(), strict=True):
        np.testing.assert_array_equal(ours, theirs)
    findings = dataclasses.replace(CONFIG, activation="sigmoid")
    with pytest.raises(CompressionError, match=r'begun with other settings: activation \(there "softmax", now null\)'):
        fit(small_net(), train, dev, SPEC, findings, tmp_path / "run", findings=FINDINGS)
    both = drawn_images(96, 1)
    with pytest.raises(DataError, match=r"left spot, right spot\) need exactly one .* of 96 training images \d+"):
        fit(small_net(), both, dev, SPEC, CONFIG, tmp_path / "refused", findings=FINDINGS)
    assert not (tmp_path / "refused").exists()


def test_training_follows_the_set_takes_a_softmax_off_and_refuses_a_teacher_of_findings(tmp_path):
    rows = ["path,side,patient_id,split"]
    for number, (image, label) in enumerate(zip(*one_spot(72, 4), strict=True)):
        cv2.imwrite(str(tmp_path / f"{number}.png"), image)
        part = ("train", "train", "dev", "test")[number % 4]
        rows.append(f"{number}.png,{FINDINGS[int(label.argmax())]},p{number},{part}")
    (tmp_path / "table.csv").write_text("\n".join(rows) + "\n")
    plain = small_net()
    about = ModelAbout(findings=FINDINGS, preprocess=SPEC)
    save_model(plain, tmp_path / "findings.keras", about=about)
    ends_in_softmax = keras.Sequential([*plain.layers, keras.layers.Softmax(name="softmax")])
    save_model(ends_in_softmax, tmp_path / "classes.keras", about=about)
    options = {"class_column": "side"}
    plan = TrainingPlan(
        **{"model": "net", "dataset": "csv", "sizes": (32,), "epochs": (1,), "batch_sizes": (12,), "augment": False},
        options=options,
        positive="right spot",
    )
    files = TrainingFiles(tmp_path, tmp_path / "run", keras_model_file=tmp_path / "classes.keras")
    log: list[str] = []
    run_training(plan, files, Listeners(log=log.append))
    found = read_about(tmp_path / "run" / "model.keras")
    assert (found.activation, found.findings) == ("softmax", FINDINGS)
    assert "note: the head is new for left spot, which the model to start from does not answer" in log
    assert "2 classes that exclude one another: left spot, right spot" in log
    assert load_model(tmp_path / "run" / "model.keras").layers[-1].name == "logits"
    assert found.preprocess.color == "gray"
    in_color = dataclasses.replace(plan, options=options | {"color": "rgb"})
    log.clear()
    run_training(in_color, dataclasses.replace(files, output_dir=tmp_path / "color"), Listeners(log=log.append))
    assert read_about(tmp_path / "color" / "model.keras").preprocess.color == "rgb"
    assert "note: csv has color images: classes.keras is trained for color (unless --color=gray)" in log
    taught = dataclasses.replace(plan, distill_weight=0.5)
    files = TrainingFiles(
        tmp_path, tmp_path / "taught", tmp_path / "classes.keras", teacher_file=tmp_path / "findings.keras"
    )
    with pytest.raises(
        DataError, match=r"gives findings of their own \(sigmoid\), this training is of classes that excl"
    ):
        run_training(taught, files)


def test_configs_say_sigmoid_as_before_and_refuse_a_focal_loss_of_classes():
    assert "activation" not in FitConfig(epochs=1).deciding()
    assert CONFIG.deciding()["activation"] == "softmax"
    with pytest.raises(CompressionError, match=r"loss must be bce for classes that exclude one another .*, got focal"):
        dataclasses.replace(CONFIG, loss="focal")
    with pytest.raises(CompressionError, match="activation must be one of sigmoid, softmax, got tanh"):
        FitConfig(epochs=1, activation="tanh")
    plan = TrainingPlan("tiny_chexnet", "csv")
    assert "activation" not in plan.to_dict(), "folders begun before there was a choice go on"
    assert plan.config(0).activation == "sigmoid"
    assert plan.config(0, "softmax").activation == "softmax"
