"""The command that trains: what it prints, what it refuses, Ctrl-C."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time

import pytest

from cxr_compress.cli.train import main
from cxr_compress.data import write_phantom
from tests.cli.runner import BLOCK_TENSORFLOW, run_module


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    folder = tmp_path_factory.mktemp("phantom")
    write_phantom(folder, n_train=160, n_test=60, size=64)
    return folder


def arguments(images, folder, **changes):
    chosen = {
        "model": "tiny_chexnet",
        "dataset": "phantom",
        "data_dir": images,
        "output_dir": folder,
        "input_size": "32",
        "epochs": "1",
        "batch_size": "16",
        **changes,
    }
    return [f"--{name}={value}" for name, value in chosen.items() if value is not None]


def test_train_prints_the_stages_and_writes_the_model(images, tmp_path):
    done = run_module("train", *arguments(images, tmp_path / "run", format="json"))
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    assert report["stages"][0]["size"] == 32
    assert "not a medical device" in report["intended_use"]
    assert (tmp_path / "run" / "model.keras").is_file()
    assert "epoch 1/1: loss" in done.stderr
    assert all(line.startswith("cxr_train: ") for line in done.stderr.splitlines())


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model": None}, "expected --model=NAME to build a network, or --keras_model_file=FILE"),
        ({"keras_model_file": "a.keras"}, "not both"),
        ({"dataset": None}, "expected --dataset, got none"),
        ({"dataset": "mnist"}, "flag --dataset=mnist: value should be one of <chexpert|csv|images|isic|kermany"),
        ({"data_dir": "nowhere"}, "expected --data_dir to exist, got 'nowhere'"),
        ({"model": None, "keras_model_file": "none.keras"}, "expected --keras_model_file to be a file"),
        ({"teacher": "none.keras"}, "expected --teacher to be a file, got 'none.keras'"),
        ({"distill_weight": "0.5"}, "--teacher and --distill_weight above 0 belong together"),
        ({"options": "policy"}, "expected --options as name=value, got 'policy'"),
        ({"input_size": "64,big"}, "expected --input_size as numbers separated by commas, got '64,big'"),
        ({"input_size": "32,48", "epochs": "1,2,3"}, "epochs must hold one value, or one per size (2), got 3"),
        ({"label_smoothing": "2"}, "label_smoothing must be in [0, 1), got 2.0"),
        ({"model": "vgg"}, "expected a --model of chexnet, densenet169"),
        ({"preset": "none"}, "value should be one of <imagenet_torch|unit|tf|caffe|xrv|raw>"),
    ],
)
def test_train_wrong_flag_is_one_line(images, tmp_path, capsys, changes, message):
    assert main(arguments(images, tmp_path / "run", **changes)) == 2
    captured = capsys.readouterr()
    (line,) = [line for line in captured.err.splitlines() if line]
    assert line.startswith("cxr_train: ")
    assert message in line
    assert not captured.out


def test_train_help_and_wrong_flags_need_no_tensorflow(images, tmp_path):
    assert run_module("train", "--help", prelude=BLOCK_TENSORFLOW).returncode == 0
    done = run_module("train", *arguments(images, tmp_path, model=None), prelude=BLOCK_TENSORFLOW)
    assert done.returncode == 2
    assert "expected --model" in done.stderr


def test_train_ctrl_c_keeps_finished_epochs_and_the_same_command_goes_on(images, tmp_path):
    code = "import sys\nfrom cxr_compress.cli.train import main\nsys.exit(main())"
    flags = arguments(images, tmp_path / "run", epochs="40")
    with subprocess.Popen([sys.executable, "-c", code, *flags], stderr=subprocess.PIPE, text=True) as process:
        deadline = time.monotonic() + 300
        state = tmp_path / "run" / "stage_1_32px" / "last.npz"
        while not state.exists():
            assert process.poll() is None, process.stderr.read()
            assert time.monotonic() < deadline
            time.sleep(0.05)
        process.send_signal(signal.SIGINT)
        _, stderr = process.communicate(timeout=120)
    assert process.returncode == 130
    last = stderr.splitlines()[-1]
    assert last == "cxr_train: interrupted; finished epochs are kept; the same command goes on from there"
    assert "Traceback" not in stderr
    epochs = len((state.parent / "log.jsonl").read_text().splitlines())
    assert 1 <= epochs < 40
    refused = run_module("train", *arguments(images, tmp_path / "run", epochs="41"))
    assert refused.returncode == 2
    assert "epochs (there [40], now [41])" in refused.stderr
