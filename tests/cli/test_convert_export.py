"""cxr_convert's flags of what the file is to be, and what it prints of every file."""

from __future__ import annotations

import json
from pathlib import Path

import cv2
import numpy as np
import pytest

from cxr_compress.cli.convert import main
from cxr_compress.device import Classifier, read_model
from cxr_compress.lite import TARGETS
from cxr_compress.models.files import save_model
from tests.cli.runner import errors_of
from tests.lite import nets

PRESET = "--preset=imagenet_torch"  # of models whose file does not say it


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model and 16 gray images."""
    folder = tmp_path_factory.mktemp("export")
    save_model(nets.chain(), folder / "model.keras")
    (folder / "images").mkdir()
    for number in range(16):
        image = np.random.default_rng(number).integers(0, 200 + number, (24, 24), np.uint8)
        assert cv2.imwrite(str(folder / "images" / f"{number:02}.png"), image)
    return folder


def flags_of(folder: Path, target: Path, *more: str) -> list[str]:
    images = f"--calibration_data={folder / 'images'}"
    return [
        PRESET,
        f"--keras_model_file={folder / 'model.keras'}",
        f"--output_file={target}",
        images,
        "--novary_images",
        *more,
    ]


def test_convert_with_other_ends_writes_files_that_the_device_runs(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    image, target = folder / "images" / "05.png", tmp_path / "a.tflite"
    assert main(flags_of(folder, target, "--quant_type=int8")) == 0
    plain = Classifier(target).predict(image).logits
    ends = ["--inference_input_type=UINT8", "--inference_output_type=FLOAT", "--target_runtime=tflite-runtime-2.14"]
    capsys.readouterr()
    assert main(flags_of(folder, target, "--quant_type=int8", *ends, "--format=json")) == 0
    (entry,) = json.loads(capsys.readouterr().out)["files"]
    assert [entry["audit"][end][0]["dtype"] for end in ("inputs", "outputs")] == ["uint8", "float32"]
    step = entry["audit"]["outputs"][0]["scale"]
    assert step is None
    # The same integers between other ends: a code more or less of about 1/255 of logits around 3.
    assert np.abs(Classifier(target).predict(image).logits - plain).max() < 0.03
    recipe = read_model(target).info.recipe
    assert recipe["inference_input_type"] == "uint8"
    assert recipe["inference_output_type"] == "float32"
    assert recipe["target_runtime"] == "tflite-runtime-2.14"
    assert "denylisted_ops" not in recipe


def test_convert_says_of_every_file_how_it_answers_and_who_runs_it(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    flags = flags_of(folder, tmp_path / "out.tflite", "--quant_type=none,int16x8")
    assert main([*flags, "--format=json"]) == 0
    for entry in json.loads(capsys.readouterr().out)["files"]:
        parity = entry["parity"]
        assert parity["source"] == "calibration images"
        assert parity["images"] == {"none": 16, "int16x8": 8}[entry["quant_type"]]
        assert min(parity["spearman"]) > 0.9
        assert parity["snr_db"] > 30
        assert entry["audit"]["output_codes"] == parity["codes"]
        assert entry["audit"]["runtimes"] == list(TARGETS)
        assert read_model(entry["file"]).info.quant_type == entry["quant_type"]
    assert main(flags) == 0
    lines = capsys.readouterr().out.splitlines()
    assert any(line.startswith("int16x8: against the model on 8 of the calibration images: ") for line in lines)
    (head,) = [line for line in lines if line.startswith("file ")]
    assert head.split()[-5:] == ["answers", "dB", "rank", "runs", "on"]


def test_convert_without_calibration_images_says_that_it_compared_on_noise(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = f"--keras_model_file={folder / 'model.keras'}"
    assert main([PRESET, source, f"--output_file={tmp_path / 'x'}", "--quant_type=fp16"]) == 0
    assert "fp16: against the model on 8 of the seeded noise: " in capsys.readouterr().out


def test_convert_leaves_kinds_of_operators_in_float(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    flags = flags_of(folder, tmp_path / "x", "--quant_type=int8_float_io", "--denylisted_ops=mean", "--format=json")
    assert main(flags) == 0
    (entry,) = json.loads(capsys.readouterr().out)["files"]
    assert "MEAN" in {op["kind"] for op in entry["audit"]["float_islands"]}
    assert read_model(tmp_path / "x").info.recipe["denylisted_ops"] == ["MEAN"]


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (
            ["--quant_type=fp16", "--inference_input_type=int8"],
            "fp16 has float32 input and output, got inference_input_type int8",
        ),
        (
            ["--quant_type=int8_float_io", "--inference_output_type=int8"],
            "int8_float_io has float32 input and output, got in",
        ),
        (
            ["--quant_type=int8", "--input=uint8", "--inference_input_type=int8"],
            "a file that takes pixels has a uint8 input, got inference_input_type int8",
        ),
        (["--quant_type=int8", "--inference_input_type=int4"], "inference_input_type"),
        (
            ["--quant_type=int8", "--denylisted_ops=MEAN"],
            "layers left in float need quant type int8_float_io, got int8",
        ),
        (["--quant_type=int8_float_io", "--denylisted_ops=SIN"], "denylisted_ops, got 'SIN': it has CONV_2D"),
        (["--quant_type=none", "--target_runtime=tflite"], "target_runtime"),
    ],
)
def test_convert_of_contradicting_export_flags_ends_with_one_line_and_code_2(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], flags: list[str], message: str
) -> None:
    assert main(flags_of(folder, tmp_path / "x.tflite", *flags)) == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    errors = errors_of(printed.err)
    assert len(errors) == 1
    assert message in errors[0]
    assert list(tmp_path.iterdir()) == []
