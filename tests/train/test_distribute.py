"""Training on several workers and devices: as one process trains, also after one of them was killed."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf

from cxr_compress.data import write_phantom
from cxr_compress.errors import CompressionError
from cxr_compress.keras2 import keras
from cxr_compress.train import fit
from cxr_compress.train.distribute import Distribution, read_cluster, start_distribution
from tests.train.images import FINDINGS, SPEC, small_net
from tests.train.worker import CONFIG, DEV, PLAN, TRAIN, train

REPOSITORY = Path(__file__).resolve().parents[2]
CLI = "import sys; from cxr_compress.cli.train import main; sys.exit(main())"
SHARED_JOBS = ("plain", "masked", "maps", "held")
JOBS = (*SHARED_JOBS, "unsynchronized", "undivided", "local_mask", "uneven", "other_images", "damaged", "training")
# Of a session of two processes; a quiet machine needs a tenth of it.
LIMIT = 300
# What both losses are compared to. Float32 sums in another order differ by 1e-7 of a loss near 1, and 20 steps of Adam
# at 5e-3 do not amplify that to 1e-5 (1.2e-7 was measured); the issue asks for 1e-3. The controls are above 1e-3.
SAME, DIFFERENT = 1e-5, 1e-3


def free_ports(count):
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for one in sockets:
            one.bind(("127.0.0.1", 0))
        return [one.getsockname()[1] for one in sockets]


@contextlib.contextmanager
def two_workers(*commands):
    """Start two processes that know of each other; none outlives the test."""
    addresses = [f"127.0.0.1:{port}" for port in free_ports(2)]
    processes = []
    try:
        for index, command in enumerate(commands):
            config = {"cluster": {"worker": addresses}, "task": {"type": "worker", "index": index}}
            environment = {**os.environ, "TF_CONFIG": json.dumps(config), "CUDA_VISIBLE_DEVICES": ""}
            processes.append(
                subprocess.Popen(
                    [sys.executable, *command],
                    cwd=REPOSITORY,
                    env=environment,
                    stdout=subprocess.PIPE,
                    stderr=subprocess.PIPE,
                    text=True,
                )
            )
        yield processes
    finally:
        for process in processes:
            process.kill()
            process.communicate()


def start_files(folder):
    """What a whole training starts from: images, and a model whose head has two outputs too few or many."""
    write_phantom(folder / "images", n_train=160, n_test=8, size=32)
    small_net().save(folder / "start.keras")
    return folder


@pytest.fixture(scope="module")
def pair(tmp_path_factory):
    """The folder in which two worker processes have done all jobs, one after the other."""
    folder = start_files(tmp_path_factory.mktemp("pair"))
    command = ["-m", "tests.train.worker", "multi_worker", str(folder), *JOBS]
    with two_workers(command, command) as processes:
        for process in processes:
            _, errors = process.communicate(timeout=LIMIT)
            assert process.returncode == 0, errors[-2000:]
    return folder


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    """The same trainings by this process alone."""
    return {job: train(job, tmp_path_factory.mktemp(job) / "run") for job in SHARED_JOBS}


def told(folder, worker, job):
    return json.loads((folder / f"worker_{worker}" / job / "told.json").read_text())


def weights(folder, worker, job):
    with np.load(folder / f"worker_{worker}" / job / "weights.npz") as stored:
        return [stored[name] for name in stored.files]


@pytest.mark.parametrize("job", SHARED_JOBS)
def test_two_workers_have_the_losses_of_one_process_on_the_same_batches(pair, alone, job):
    losses, _, result = alone[job]
    assert len(losses) == 20
    for worker in (0, 1):
        found = told(pair, worker, job)
        np.testing.assert_allclose(found["losses"], losses, rtol=0, atol=SAME)
        assert found["best_epoch"] == result.best_epoch
        assert [entry["dev_auroc"] for entry in found["history"]] == pytest.approx(
            [entry["dev_auroc"] for entry in result.history], abs=2e-3
        )
    assert told(pair, 0, job) == told(pair, 1, job)
    for one, other in zip(weights(pair, 0, job), weights(pair, 1, job), strict=True):
        np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize(
    ("job", "whole"), [("unsynchronized", "plain"), ("undivided", "plain"), ("local_mask", "masked")]
)
def test_two_workers_without_one_part_of_it_would_train_otherwise(pair, alone, job, whole):
    """The controls of the test above: batch norm of the whole batch, the divided loss, the count of known labels."""
    assert np.abs(np.subtract(told(pair, 0, job)["losses"], alone[whole][0])).max() > DIFFERENT


def test_two_workers_leave_files_with_the_chief_only(pair):
    assert (pair / "worker_0" / "plain" / "run" / "last.npz").is_file()
    assert (pair / "worker_0" / "training" / "run" / "training.json").is_file()
    files = {path.name for path in (pair / "worker_1").rglob("*") if path.is_file()}
    assert files == {"told.json", "weights.npz"}  # what this test's worker leaves of its own


def test_two_workers_deliver_a_model_with_plain_batch_norms(pair):
    model = keras.models.load_model(pair / "worker_0" / "training" / "run" / "model.keras")
    norms = [layer for layer in model.layers if isinstance(layer, keras.layers.BatchNormalization)]
    assert [layer.synchronized for layer in norms] == [False]
    assert not np.allclose(norms[0].moving_variance, 1.0)  # its statistics came along
    report = told(pair, 0, "training")["report"]
    assert len(report["stages"][0]["history"]) == 6
    assert told(pair, 1, "training")["report"] is None


def test_two_workers_run_is_gone_on_with_by_one_process(pair, tmp_path):
    """How many workers there are decides nothing, so it is no part of what a run folder refuses."""
    shutil.copytree(pair / "worker_0" / "plain" / "run", tmp_path / "run")
    losses, model, _ = train("plain", tmp_path / "run")
    assert losses == []
    for one, other in zip(model.get_weights(), weights(pair, 0, "plain"), strict=True):
        np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize(
    ("job", "error", "of_chief", "of_other"),
    [
        ("uneven", "CompressionError", "divide among 2 replicas of the model, got 15: choose", "got 15: choose"),
        (
            "other_images",
            "CompressionError",
            "worker 2 of 2 .* was started with other",
            "than the chief: images .chief",
        ),
        ("damaged", "ModelFileError", "run.json of the training run cannot be", "run.json of the training run cannot"),
    ],
)
def test_two_workers_end_together_where_one_cannot_train(pair, job, error, of_chief, of_other):
    import re

    for worker, text in enumerate((of_chief, of_other)):
        found = told(pair, worker, job)
        assert found["error"] == error
        assert re.search(text, found["text"])


def cli(folder, start):
    flags = {
        "keras_model_file": start / "start.keras",
        "dataset": PLAN.dataset,
        "preset": PLAN.preset,
        "data_dir": start / "images",
        "output_dir": folder,
        "input_size": PLAN.sizes[0],
        "epochs": PLAN.epochs[0],
        "batch_size": PLAN.batch_sizes[0],
        "distribution": "multi_worker",
    }
    return ["-c", CLI, *(f"--{name}={value}" for name, value in flags.items())]


def read_until(process, text):
    """Lines of a process's stderr until one has the text."""
    lines = []
    for line in process.stderr:
        lines.append(line)
        if text in line:
            break
    return lines


def epochs_done(folder):
    log = folder / "stage_1_32px" / "log.jsonl"
    return len(log.read_text().splitlines()) if log.exists() else 0


def kill_one(folders, start, victim, epoch):
    """Train until an epoch is done, kill one worker within the next, and give what the other one said."""
    commands = [cli(folder, start) for folder in folders]
    with two_workers(*commands) as processes:
        read_until(processes[0], f"epoch {epoch}/{PLAN.epochs[0]}: loss")  # done; a slow machine reports within it too
        time.sleep(0.2)  # somewhere in the next epoch, which takes longer
        os.kill(processes[victim].pid, signal.SIGKILL)
        survivor = processes[1 - victim]
        output, errors = survivor.communicate(timeout=60)  # TensorFlow's heartbeat gives a silent worker ten seconds
        return survivor.returncode, output, errors


def test_train_killed_worker_ends_the_others_and_the_restarted_ones_go_on(pair, tmp_path):
    folders = [tmp_path / "first", tmp_path / "second"]
    done = 0
    for victim in (1, 0):
        code, output, errors = kill_one(folders, pair, victim, done + 1)
        assert (code, output) == (2, "")
        assert f"lost contact with worker {victim + 1} of 2 (127.0.0.1:" in errors
        assert "finished epochs are kept: start the same command on all machines again" in errors
        assert all(line.startswith("cxr_train: ") for line in errors.splitlines())
        assert done < epochs_done(folders[0]) < PLAN.epochs[0]
        done = epochs_done(folders[0])
    commands = [cli(folder, pair) for folder in folders]
    with two_workers(*commands) as processes:
        said = [process.communicate(timeout=LIMIT) for process in processes]
        assert [process.returncode for process in processes] == [0, 0], said
    assert f"epoch {done}/6" not in said[0][1]
    assert f"epoch {done + 1}/6" in said[0][1]
    assert "this worker is done; the chief has written the model" in said[1][1]
    assert said[1][0] == ""
    assert not folders[1].exists()
    undisturbed = keras.models.load_model(pair / "worker_0" / "training" / "run" / "model.keras")
    resumed = keras.models.load_model(folders[0] / "model.keras")
    for one, other in zip(resumed.get_weights(), undisturbed.get_weights(), strict=True):
        # To the bit: order, changes of images and schedule follow from seed and epoch, the state is restored to the
        # bit, and a sum of two workers does not depend on who is first.
        np.testing.assert_array_equal(one, other)


def test_mirrored_two_devices_have_the_losses_of_one(alone, tmp_path):
    command = [sys.executable, "-m", "tests.train.worker", "mirrored", str(tmp_path), *SHARED_JOBS]
    environment = {**os.environ, "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run(
        command, cwd=REPOSITORY, env=environment, capture_output=True, text=True, timeout=LIMIT, check=False
    )
    assert done.returncode == 0, done.stderr[-2000:]
    for job in SHARED_JOBS:
        np.testing.assert_allclose(told(tmp_path, 0, job)["losses"], alone[job][0], rtol=0, atol=SAME)
    for other in ("maps", "held"):  # the controls: what the job is named after does something
        assert np.abs(np.subtract(alone[other][0], alone["plain"][0])).max() > DIFFERENT
    kernel = next(index for index, weight in enumerate(alone["held"][1].weights) if "conv2/kernel" in weight.name)
    own, theirs = alone["held"][1].get_weights()[kernel], weights(tmp_path, 0, "held")[kernel]
    assert np.count_nonzero(own == 0) > 100
    np.testing.assert_array_equal(own == 0, theirs == 0)


def cluster(task=("worker", 0), **jobs):
    return json.dumps({"cluster": jobs, "task": {"type": task[0], "index": task[1]}})


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        (None, "is not set"),
        (" ", "is not set"),
        ("{", "is no JSON"),
        ("[]", 'needs the objects "cluster" and "task"'),
        ('{"cluster": {"worker": ["a:1"]}}', 'needs the objects "cluster" and "task"'),
        (cluster(worker=[]), "needs a list of addresses per kind of task"),
        (cluster(worker=["a:1"], ps=["b:1"]), "names tasks of kind 'ps', and only chief and worker train"),
        (cluster(worker=["a:1"], chief=["b:1", "c:1"]), "names more than one chief"),
        (cluster(worker=["a:1", "b"]), "names the address 'b', which is no host:port"),
        (cluster(worker=["a:1", "b:70000"]), "names the address 'b:70000'"),
        (cluster(worker=["a:1", "a:1"]), "names an address twice"),
        (cluster(("worker", 2), worker=["a:1", "b:1"]), "says that this is worker 2, and the cluster's workers are 0"),
        (cluster(("worker", "0"), worker=["a:1"]), "says that this is worker '0'"),
        (cluster(("chief", 0), worker=["a:1"]), "is a task of type 'chief', which the cluster has none of"),
    ],
)
def test_cluster_malformed_tf_config_is_an_error_with_an_example(text, problem):
    environment = {} if text is None else {"TF_CONFIG": text}
    with pytest.raises(CompressionError, match=f"TF_CONFIG .*{problem}.*: set it on each machine") as caught:
        read_cluster(environment)
    assert '"worker": ["10.0.0.1:12345", "10.0.0.2:12345"]}, "task": {"type": "worker", "index": 0}' in str(
        caught.value
    )


def test_cluster_chief_comes_before_the_workers():
    found = read_cluster({"TF_CONFIG": cluster(("worker", 1), worker=["a:1", "b:1"], chief=["c:1"])})
    assert (found.addresses, found.index, found.is_chief) == (("c:1", "a:1", "b:1"), 2, False)
    assert found.name(2) == "worker 3 of 3 (b:1)"
    assert read_cluster({"TF_CONFIG": cluster(worker=["a:1", "b:1"])}).is_chief


def test_start_distribution_none_is_none_and_other_words_are_an_error(monkeypatch):
    assert start_distribution("none") is None
    with pytest.raises(CompressionError, match="one of none, mirrored, multi_worker, got 'all'"):
        start_distribution("all")
    monkeypatch.delenv("TF_CONFIG", raising=False)
    with pytest.raises(CompressionError, match="TF_CONFIG is not set"):
        start_distribution("multi_worker")


def test_fit_callbacks_with_a_distribution_are_an_error(tmp_path):
    distribution = Distribution(tf.distribute.get_strategy())
    with pytest.raises(CompressionError, match="callbacks change one model, not its replicas"):
        fit(
            small_net(),
            TRAIN,
            DEV,
            SPEC,
            CONFIG,
            tmp_path,
            findings=FINDINGS,
            extra_callbacks=[keras.callbacks.Callback()],
            distribution=distribution,
        )


def test_guard_other_errors_of_tensorflow_pass():
    distribution = Distribution(tf.distribute.get_strategy())
    with pytest.raises(tf.errors.InvalidArgumentError), distribution.guard():
        tf.reshape(tf.zeros(3), (2, 2))
