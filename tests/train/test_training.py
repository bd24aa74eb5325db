"""A whole base training on phantom images: sizes in turn, a model that says what it is, resuming and refusing."""

from __future__ import annotations

import dataclasses
import hashlib
import json

import numpy as np
import pytest

from cxr_compress.data import PHANTOM_FINDINGS, decode_split, load_dataset, write_phantom
from cxr_compress.device.image_checks import ImageStatistics
from cxr_compress.errors import CompressionError, DataError
from cxr_compress.keras2 import keras
from cxr_compress.models import load_model, read_about
from cxr_compress.train.config import TrainingPlan
from cxr_compress.train.step import predict_logits
from cxr_compress.train.training import Listeners, TrainingFiles, run_training

PLAN = TrainingPlan("tiny_chexnet", "phantom", sizes=(32, 48), epochs=(2, 1), batch_sizes=(16,), ema_decay=0.9)


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    folder = tmp_path_factory.mktemp("phantom")
    write_phantom(folder, n_train=160, n_test=60, size=64)
    return folder


@pytest.fixture(scope="module")
def finished(images, tmp_path_factory):
    folder = tmp_path_factory.mktemp("run")
    log = []
    report = run_training(PLAN, TrainingFiles(images, folder), Listeners(log=log.append))
    return folder, report, log


def test_training_grows_and_saves_a_model_that_says_what_it_is(finished, images):
    folder, report, log = finished
    model = keras.models.load_model(folder / "model.keras")
    assert model.input_shape == (None, 48, 48, 3)
    about = read_about(folder / "model.keras")
    assert about.findings == tuple(PHANTOM_FINDINGS)
    assert (about.preprocess.height, about.dataset) == (48, "phantom")
    assert len(about.pos_weight) == len(about.findings)
    trained_on = load_dataset("phantom", images).train
    assert about.images == ImageStatistics.of(decode_split(trained_on, about.preprocess))
    assert [stage["size"] for stage in report["stages"]] == [32, 48]
    assert [len(stage["history"]) for stage in report["stages"]] == [2, 1]
    assert report["sha256"] == hashlib.sha256((folder / "model.keras").read_bytes()).hexdigest()
    assert json.loads((folder / "training.json").read_text()) == report
    assert [line for line in log if line.startswith("stage")] == [
        "stage 1 of 2: 32 px, 2 epochs",
        "stage 2 of 2: 48 px, 1 epochs",
    ]
    dataset = load_dataset("phantom", images)
    logits = predict_logits(model, decode_split(dataset.dev, about.preprocess), about.preprocess)
    stored = report["stages"][-1]["history"][-1]["dev_loss"]
    z, y, w = logits.astype(np.float64), dataset.dev.labels, np.array(about.pos_weight)
    assert stored == pytest.approx(np.mean(w * y * np.logaddexp(0, -z) + (1 - y) * np.logaddexp(0, z)), rel=1e-4)


def test_training_names_no_image_and_no_patient_in_what_it_writes(finished, images):
    folder, _, log = finished
    dataset = load_dataset("phantom", images)
    texts = [path.read_bytes() for path in folder.rglob("*") if path.is_file()] + ["\n".join(log).encode()]
    for split in dataset.splits:
        for name in (*{path.stem for path in split.paths}, *split.patients):
            if len(name) > 5:  # a shorter one may be part of a number
                assert not any(name.encode() in text for text in texts)


def test_training_again_changes_nothing_and_other_flags_are_refused(finished, images):
    folder, report, _ = finished
    before = (folder / "model.keras").read_bytes()
    again = run_training(PLAN, TrainingFiles(images, folder))
    assert (folder / "model.keras").read_bytes() == before
    assert again["stages"] == report["stages"]
    other = dataclasses.replace(PLAN, learning_rates=(1e-4,), seed=3)
    with pytest.raises(CompressionError, match=r"learning_rates \(there \[0.001, 0.001\], now .*seed \(there 0, now 3"):
        run_training(other, TrainingFiles(images, folder))


def test_training_stopped_between_and_in_epochs_ends_with_the_same_bytes(finished, images, tmp_path):
    folder, _, _ = finished
    for stop_after in (3, 12):  # in the first and in the second epoch
        steps = []

        def stop(*step, steps=steps, limit=stop_after):
            steps.append(step)
            if len(steps) == limit:
                raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            run_training(PLAN, TrainingFiles(images, tmp_path), Listeners(on_step=stop))
    run_training(PLAN, TrainingFiles(images, tmp_path))
    assert (tmp_path / "model.keras").read_bytes() == (folder / "model.keras").read_bytes()


def test_training_from_a_model_file_keeps_its_preprocessing_and_learns_on(finished, images, tmp_path):
    start = finished[0] / "model.keras"
    plan = TrainingPlan("tiny_chexnet", "phantom", sizes=(32,), epochs=(1,), batch_sizes=(16,), learning_rates=(1e-9,))
    run_training(plan, TrainingFiles(images, tmp_path / "on", keras_model_file=start))
    first, second = load_model(start), load_model(tmp_path / "on" / "model.keras")
    for one, other in zip(first.trainable_weights, second.trainable_weights, strict=True):
        np.testing.assert_allclose(one.numpy(), other.numpy(), atol=1e-6)  # 9 steps of at most 1e-9 each, and rounding
    assert read_about(tmp_path / "on" / "model.keras").preprocess.height == 32


def test_training_distils_from_a_teacher(finished, images, tmp_path):
    teacher = finished[0] / "model.keras"
    plan = dataclasses.replace(PLAN, sizes=(32,), epochs=(1,), batch_sizes=(16,), learning_rates=(1e-3,))
    follows = dataclasses.replace(plan, distill_weight=1.0)
    alone = run_training(plan, TrainingFiles(images, tmp_path / "alone"))
    taught = run_training(follows, TrainingFiles(images, tmp_path / "taught", teacher_file=teacher))
    assert alone["stages"][0]["history"][0]["loss"] != taught["stages"][0]["history"][0]["loss"]


def test_training_loss_that_is_no_number_names_the_images_by_hash(images, tmp_path):
    plan = dataclasses.replace(PLAN, learning_rates=(1e38,), warmup_fraction=0.0, augment=False)
    with pytest.raises(DataError, match=r"loss became .* in epoch 1: lower the learning rate.*nan_batch.json"):
        run_training(plan, TrainingFiles(images, tmp_path))
    (file,) = tmp_path.rglob("nan_batch.json")
    named = json.loads(file.read_text())["sha256_of_decoded_image"]
    dataset = load_dataset("phantom", images)
    spec = dataclasses.replace(read_spec(), height=32, width=32)
    known = {hashlib.sha256(image.tobytes()).hexdigest()[:12] for image in decode_split(dataset.train, spec)}
    assert len(named) == 16
    assert set(named) <= known


def read_spec():
    from cxr_compress.device.preprocess import PreprocessSpec

    return PreprocessSpec.preset("imagenet_torch", 32, 32)
