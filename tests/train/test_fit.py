"""Training: it learns, keeps the best epoch, and a run that was stopped ends as if it never had been."""

from __future__ import annotations

import json
import math
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from cxr_compress.errors import CompressionError, DataError, ModelFileError
from cxr_compress.keras2 import keras
from cxr_compress.metrics import auroc
from cxr_compress.train import FitConfig, fit, pos_weights, predict_logits
from tests.train.images import FINDINGS, SPEC, drawn_images, small_net

TRAIN, DEV = drawn_images(96, seed=10), drawn_images(40, seed=11)
CONFIG = FitConfig(epochs=4, batch_size=16, learning_rate=5e-3)


def run(folder, model=None, config=CONFIG, train=TRAIN, dev=DEV, **options):
    model = small_net() if model is None else model
    result = fit(model, train, dev, SPEC, config, folder, findings=FINDINGS, **options)
    return model, result


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    folder = tmp_path_factory.mktemp("finished")
    return folder, *run(folder)


def largest_difference(model, other):
    return max(np.abs(a - b).max() for a, b in zip(model.get_weights(), other.get_weights(), strict=True))


class StopAt(keras.callbacks.Callback):
    """Ctrl-C in the middle of an epoch."""

    def __init__(self, epoch, batch):
        super().__init__()
        self.place, self.epoch = (epoch, batch), 0

    def on_epoch_begin(self, epoch, logs=None):
        self.epoch = epoch

    def on_train_batch_end(self, batch, logs=None):
        if (self.epoch, batch) == self.place:
            raise KeyboardInterrupt


def test_fit_learns_what_the_labels_say(tmp_path):
    model, result = run(tmp_path, config=FitConfig(epochs=12, batch_size=16, learning_rate=1e-2))
    images, labels = drawn_images(100, seed=12)
    logits = predict_logits(model, images, SPEC)
    assert min(auroc(labels[:, i], logits[:, i]) for i in range(2)) > 0.9
    assert result.history[-1]["loss"] < 0.7 * result.history[0]["loss"]
    fresh = predict_logits(small_net(), images, SPEC)
    assert min(auroc(labels[:, i], fresh[:, i]) for i in range(2)) < 0.8


def test_fit_reports_each_epoch_and_leaves_the_best_weights_in_the_model(finished):
    folder, model, result = finished
    logits = predict_logits(model, DEV[0], SPEC)
    per_finding = {name: auroc(DEV[1][:, i], logits[:, i]) for i, name in enumerate(FINDINGS)}
    best = result.history[result.best_epoch - 1]
    assert best["auroc"] == pytest.approx(per_finding)
    assert result.best_dev_auroc == best["dev_auroc"] == pytest.approx(np.mean(list(per_finding.values())))
    assert result.best_dev_auroc == max(entry["dev_auroc"] for entry in result.history)
    assert [entry["epoch"] for entry in result.history] == [1, 2, 3, 4]
    assert result.seconds == pytest.approx(sum(entry["seconds"] for entry in result.history))
    np.testing.assert_array_equal(result.pos_weight, pos_weights(TRAIN[1]))
    lines = (folder / "log.jsonl").read_text().splitlines()
    assert [json.loads(line) for line in lines] == list(result.history)
    names = sorted(path.name for path in folder.iterdir() if not path.name.startswith("events.out.tfevents."))
    assert names == sorted(["run.json", "log.jsonl", "last.npz", f"best_epoch_{result.best_epoch}.npz"])


def test_fit_finished_run_returns_its_result_without_training(finished):
    folder, model, result = finished
    log = []
    again, repeated = run(folder, progress=log.append)
    assert log == []
    assert largest_difference(again, model) == 0.0
    assert repeated.history == result.history
    assert repeated.best_epoch == result.best_epoch


def test_fit_two_runs_of_one_seed_agree_and_another_seed_does_not(finished, tmp_path):
    _, model, _ = finished
    same, _ = run(tmp_path / "same")
    other, _ = run(tmp_path / "other", config=FitConfig(epochs=4, batch_size=16, learning_rate=5e-3, seed=1))
    assert largest_difference(same, model) == 0.0
    assert largest_difference(other, model) > 1e-3


def last_weights(folder):
    with np.load(folder / "last.npz") as state:
        return {name: state[name] for name in state.files if name != "state"}


@pytest.mark.parametrize("place", [(0, 2), (2, 0), (3, 5)])
def test_fit_interrupted_run_resumes_to_bit_equal_weights(finished, tmp_path, place):
    folder, model, result = finished
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path, extra_callbacks=[StopAt(*place)])
    done = len((tmp_path / "log.jsonl").read_text().splitlines()) if place[0] else 0
    assert done == place[0]
    log = []
    resumed, resumed_result = run(tmp_path, progress=log.append)
    epochs = [line.split(":")[0] for line in log if "dev AUROC" in line]  # a slow machine also reports in between
    assert epochs == [f"epoch {epoch}/4" for epoch in range(done + 1, 5)]
    assert largest_difference(resumed, model) == 0.0
    assert resumed_result.best_epoch == result.best_epoch
    expected, found = last_weights(folder), last_weights(tmp_path)
    for name, array in expected.items():
        np.testing.assert_array_equal(found[name], array)


@pytest.mark.parametrize("forgotten", ["optimizer", "weights"])
def test_fit_resume_that_forgot_a_part_of_the_state_would_end_elsewhere(finished, tmp_path, forgotten):
    """The control of the test above: what is restored is needed."""
    folder, _, _ = finished
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path, extra_callbacks=[StopAt(2, 0)])
    with np.load(tmp_path / "last.npz") as state:
        arrays = {name: state[name] for name in state.files}
    for name, array in arrays.items():
        if name.startswith(forgotten) and array.dtype == np.float32:  # the step counter stays
            arrays[name] = np.zeros_like(array) if forgotten == "optimizer" else array * np.float32(1.01)
    np.savez(tmp_path / "last.npz", **arrays)
    run(tmp_path)
    expected, found = last_weights(folder), last_weights(tmp_path)
    weights = [name for name in expected if name.startswith("weights")]
    assert max(np.abs(expected[name] - found[name]).max() for name in weights) > 1e-3


KILLED = """
from cxr_compress.train import fit
from tests.train.test_fit import run
import sys
run(sys.argv[1], progress=lambda line: print(line, flush=True))
"""


def test_fit_killed_process_leaves_a_run_that_resumes_to_bit_equal_weights(finished, tmp_path):
    _, model, _ = finished
    with subprocess.Popen(
        [sys.executable, "-c", KILLED, str(tmp_path)],
        cwd=Path(__file__).resolve().parents[2],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    ) as process:
        assert process.stdout.readline().startswith("epoch 1/4")
        time.sleep(0.05)  # somewhere in the next epoch, or in the middle of writing its files
        os.kill(process.pid, signal.SIGKILL)
    resumed, _ = run(tmp_path)
    assert largest_difference(resumed, model) == 0.0


def test_fit_folder_of_a_run_with_other_settings_is_an_error(finished):
    folder, _, _ = finished
    config = FitConfig(epochs=4, batch_size=8, learning_rate=5e-3)
    with pytest.raises(CompressionError, match=r"begun with other settings: batch_size \(there 16, now 8\); give the"):
        run(folder, config=config)
    with pytest.raises(CompressionError, match="other settings: start_weights"):
        run(folder, model=small_net(seed=5))
    with pytest.raises(CompressionError, match="other settings: images"):
        run(folder, dev=drawn_images(40, seed=99))
    with pytest.raises(CompressionError, match=r"other settings: stage \(there null, now \"pruned\"\)"):
        run(folder, facts={"stage": "pruned"})


@pytest.mark.parametrize("name", ["last.npz", "run.json"])
def test_fit_damaged_run_folder_is_an_error(tmp_path, name):
    one_epoch = FitConfig(epochs=1, batch_size=16)
    run(tmp_path, config=one_epoch)
    path = tmp_path / name
    path.write_bytes(path.read_bytes()[:-200])
    with pytest.raises(ModelFileError, match=f"{name}.*give the run another folder, or delete this one"):
        run(tmp_path, config=one_epoch)


def test_fit_checkpoint_of_another_network_is_an_error(tmp_path):
    one_epoch = FitConfig(epochs=1, batch_size=16)
    run(tmp_path, config=one_epoch)
    arrays = last_weights(tmp_path)
    arrays["weights.0000"] = arrays["weights.0000"][..., :1]
    np.savez(tmp_path / "last.npz", state=np.zeros(0, np.uint8), **arrays)
    with pytest.raises(ModelFileError, match=r"weights\.0000 has shape \(3, 3, 3, 1\), the model's kernel"):
        run(tmp_path, config=one_epoch)


def test_fit_loss_that_is_no_number_stops_and_keeps_no_checkpoint_of_it(tmp_path):
    config = FitConfig(epochs=3, batch_size=16, learning_rate=1e30, warmup_fraction=0)
    with pytest.raises(DataError, match=r"loss became (nan|inf) in epoch 1: lower the learning rate \(now 1e\+30\)"):
        run(tmp_path, config=config)
    assert not (tmp_path / "last.npz").exists()


class Spoil(keras.callbacks.Callback):
    """Makes the epochs from one on useless; the first is 0."""

    def __init__(self, first):
        super().__init__()
        self.first = first

    def on_epoch_end(self, epoch, logs=None):
        if epoch >= self.first:
            self.model.set_weights([np.zeros_like(weight) for weight in self.model.get_weights()])


def test_fit_epochs_before_best_from_epoch_are_never_the_best(tmp_path):
    config = FitConfig(epochs=2, batch_size=16, learning_rate=5e-3)
    _, free = run(tmp_path / "free", config=config, extra_callbacks=[Spoil(1)])
    assert free.best_epoch == 1
    model, result = run(tmp_path / "late", config=config, extra_callbacks=[Spoil(1)], best_from_epoch=2)
    assert result.best_epoch == 2
    assert result.best_dev_auroc == 0.5
    assert all(not np.any(weight) for weight in model.get_weights())  # changes at the epoch's end are what is saved


def test_fit_start_that_no_epoch_beats_stays(finished, tmp_path):
    _, good, _ = finished
    start = small_net()
    start.set_weights(good.get_weights())
    log = []
    options = {"model": start, "extra_callbacks": [Spoil(0)], "best_from_epoch": 0, "progress": log.append}
    model, result = run(tmp_path / "kept", **options)
    assert result.best_epoch == 0
    assert largest_difference(model, good) == 0.0
    logits = predict_logits(good, DEV[0], SPEC)
    assert result.best_dev_auroc == pytest.approx(np.mean([auroc(DEV[1][:, i], logits[:, i]) for i in range(2)]))
    assert [entry["epoch"] for entry in result.history] == [0, 1, 2, 3, 4]
    lines = (tmp_path / "kept" / "log.jsonl").read_text().splitlines()
    assert [json.loads(line) for line in lines] == list(result.history)
    assert log[0] == f"start: dev loss {result.history[0]['dev_loss']:.4f}, dev AUROC {result.best_dev_auroc:.4f}"
    start.set_weights(good.get_weights())
    log.clear()
    again, repeated = run(tmp_path / "kept", **options)
    assert (log, repeated.history, largest_difference(again, good)) == ([], result.history, 0.0)
    start.set_weights(good.get_weights())
    model, result = run(tmp_path / "control", model=start, extra_callbacks=[Spoil(0)])
    assert result.best_epoch == 1
    assert not any(np.any(weight) for weight in model.get_weights())


def test_fit_start_counts_for_patience_and_for_the_best_of_an_average(finished, tmp_path):
    _, good, _ = finished
    start = small_net()
    start.set_weights(good.get_weights())
    config = FitConfig(epochs=4, batch_size=16, learning_rate=1e-2, patience=2, ema_decay=0.5)
    wrong = (TRAIN[0], 1 - TRAIN[1])
    model, result = run(tmp_path, model=start, config=config, train=wrong, best_from_epoch=0)
    assert [entry["epoch"] for entry in result.history] == [0, 1, 2]
    assert result.best_epoch == 0
    assert largest_difference(model, good) == 0.0


def test_fit_start_that_is_scored_changes_no_later_epoch_and_resumes(finished, tmp_path):
    folder, _, plain = finished
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path, extra_callbacks=[StopAt(0, 2)], best_from_epoch=0)
    assert (tmp_path / "best_epoch_0.npz").exists()
    log = []
    _, result = run(tmp_path, best_from_epoch=0, progress=log.append)
    assert not any(line.startswith("start") for line in log)
    assert [entry["dev_loss"] for entry in result.history[1:]] == [entry["dev_loss"] for entry in plain.history]
    expected, found = last_weights(folder), last_weights(tmp_path)
    for name, array in expected.items():
        np.testing.assert_array_equal(found[name], array)


def test_fit_start_that_gives_no_number_is_an_error(tmp_path):
    broken = small_net()
    broken.set_weights([np.full_like(weight, np.nan) for weight in broken.get_weights()])
    with pytest.raises(DataError, match="dev loss is nan before the first step: look for NaN in the model's weights"):
        run(tmp_path, model=broken, best_from_epoch=0)
    with pytest.raises(CompressionError, match=r"best_from_epoch must be within 0\.\.4 \(epochs\), got -1"):
        run(tmp_path, best_from_epoch=-1)


def test_fit_distillation_pulls_towards_the_teacher_and_not_the_labels(tmp_path):
    teacher, _ = run(tmp_path / "teacher", config=FitConfig(epochs=12, batch_size=16, learning_rate=1e-2))
    images, labels = drawn_images(100, seed=12)
    wrong = (TRAIN[0], 1 - TRAIN[1])

    def student(weight, **options):
        config = FitConfig(epochs=12, batch_size=16, learning_rate=1e-2, distill_weight=weight)
        model, _ = run(tmp_path / f"student{weight}", small_net(seed=3), config, train=wrong, **options)
        return auroc(labels[:, 0], predict_logits(model, images, SPEC)[:, 0])

    assert student(1.0, teacher=teacher) > 0.8
    assert student(0.0) < 0.5


def test_fit_distillation_without_a_teacher_is_an_error(tmp_path):
    with pytest.raises(
        CompressionError,
        match=r"needs a teacher and a distill_weight or feature_weight above 0, got no teacher, 0\.5 and 0\.0",
    ):
        run(tmp_path, config=FitConfig(epochs=1, distill_weight=0.5))


def test_fit_numbers_of_findings_that_differ_are_an_error(tmp_path):
    with pytest.raises(DataError, match="2 logits of the model, 1 findings, 2 columns of the training labels"):
        fit(small_net(), TRAIN, DEV, SPEC, CONFIG, tmp_path, findings=["spot"])
    with pytest.raises(DataError, match="1 columns of the dev labels"):
        run(tmp_path, dev=(DEV[0], DEV[1][:, :1]))


def test_fit_dev_set_with_one_class_has_an_undefined_auroc_and_chooses_by_loss(tmp_path):
    healthy = (DEV[0], np.zeros_like(DEV[1]))
    _, result = run(tmp_path, config=FitConfig(epochs=2, batch_size=16), dev=healthy)
    assert math.isnan(result.best_dev_auroc)
    losses = [entry["dev_loss"] for entry in result.history]
    assert result.best_epoch == 1 + int(np.argmin(losses))
    assert json.loads((tmp_path / "log.jsonl").read_text().splitlines()[0])["auroc"] == dict.fromkeys(FINDINGS)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"epochs": 0}, "epochs must be at least 1, got 0"),
        ({"epochs": 1, "batch_size": 0}, "batch_size must be at least 1, got 0"),
        ({"epochs": 1, "learning_rate": 0.0}, r"learning_rate must be a positive number, got 0\.0"),
        ({"epochs": 1, "learning_rate": float("nan")}, "learning_rate must be a positive number, got nan"),
        ({"epochs": 1, "warmup_fraction": 1.0}, r"warmup_fraction must be in \[0, 1\), got 1\.0"),
        ({"epochs": 1, "weight_decay": -0.1}, "weight_decay must be 0 or a positive number, got -0.1"),
        ({"epochs": 1, "distill_loss": "mse"}, "distill_loss must be one of probabilities, logits, got mse"),
        ({"epochs": 1, "batch_norm": "freeze"}, "batch_norm must be one of train, hold, got freeze"),
        ({"epochs": 1, "distill_weight": 1.1}, r"distill_weight must be in \[0, 1\], got 1\.1"),
    ],
)
def test_fit_config_value_out_of_range_is_an_error(arguments, message):
    with pytest.raises(CompressionError, match=message):
        FitConfig(**arguments)
