"""--delegate of every command that runs a .tflite."""

from __future__ import annotations

import importlib
import json
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest

from cxr_compress.device.classifier import Classifier
from tests.device.delegates import WATCHING, build
from tests.device.reference import FLOAT_MODEL

pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="names of Linux's libraries")
COMMANDS = {
    "predict": ["IMAGE"],
    "benchmark": ["--runs=1", "--warmup=0", "--image_size=16"],
    "verify": [],
    "evaluate": ["--dataset=phantom", "--data_dir=PHANTOM", "--by=", "--bootstrap_samples=10"],
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An image, and a small drawn set."""
    from cxr_compress.data import write_phantom

    folder = tmp_path_factory.mktemp("delegate")
    image = np.random.default_rng(0).integers(0, 255, (40, 40), np.uint8)
    assert cv2.imwrite(str(folder / "image.png"), image)
    write_phantom(folder / "phantom", n_train=120, n_test=40, size=32)
    return folder


def call(folder: Path, command: str, *flags: str) -> int:
    main = importlib.import_module(f"cxr_compress.cli.{command}").main
    names = {"IMAGE": str(folder / "image.png"), "--data_dir=PHANTOM": f"--data_dir={folder / 'phantom'}"}
    return int(main([f"--model={FLOAT_MODEL}", *(names.get(flag, flag) for flag in COMMANDS[command]), *flags]))


@pytest.mark.parametrize("command", COMMANDS)
@pytest.mark.parametrize(
    ("library", "message"),
    [
        ("libno_edgetpu.so.1", "the delegate libno_edgetpu.so.1 cannot be loaded"),
        ("libm.so.6", "is no TFLite delegate"),
    ],
)
def test_delegate_that_cannot_be_used_ends_every_command_with_one_line(
    folder: Path, capsys: pytest.CaptureFixture[str], command: str, library: str, message: str
) -> None:
    assert call(folder, command, f"--delegate={library}") == 2
    printed = capsys.readouterr()
    errors = [line for line in printed.err.splitlines() if "delegate" in line.lower()]
    assert (printed.out, len(errors)) == ("", 1)
    assert message in errors[0]


@pytest.mark.parametrize("command", ["predict", "benchmark"])
def test_delegate_is_named_in_the_results(
    folder: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str], command: str
) -> None:
    library = build(tmp_path, WATCHING, "libwatching.so", VERDICT=0)
    assert call(folder, command, f"--delegate={library}", "--format=json") == 0
    found = json.loads(capfd.readouterr().out)
    runtime = found["model"]["runtime"] if command == "predict" else found["runtime"]
    assert runtime == f"{Classifier(FLOAT_MODEL).runtime} with libwatching.so"


def test_delegate_of_layers_and_of_keras_files_is_refused(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from cxr_compress.cli.benchmark import main as benchmark
    from cxr_compress.cli.evaluate import main as evaluate

    assert benchmark(["--layers=pack.zip", "--output_file=table.json", "--delegate=libm.so.6"]) == 2
    assert "--delegate is for --model" in capsys.readouterr().err
    (tmp_path / "model.keras").write_bytes(b"nothing")
    flags = ["--dataset=phantom", f"--data_dir={folder / 'phantom'}", "--delegate=libm.so.6"]
    assert evaluate([f"--model={tmp_path / 'model.keras'}", *flags]) == 2
    assert "--delegate runs .tflite files, got model.keras" in capsys.readouterr().err
