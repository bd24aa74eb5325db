"""--fit_thresholds of cxr_convert: each file gets its own thresholds and calibration from the dev part of a set."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from cxr_compress.cli.convert import main
from cxr_compress.data import decode_split, load_dataset, write_phantom
from cxr_compress.device import read_model
from cxr_compress.device.modelfile import ModelInfo
from cxr_compress.evaluate import choose_calibration, file_logits
from cxr_compress.models.files import save_model
from tests.lite import nets

PRESET = "--preset=imagenet_torch"  # of models whose file does not say it
Capture = pytest.CaptureFixture[str]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """model.keras of four logits, and a drawn set in phantom/."""
    folder = tmp_path_factory.mktemp("fit")
    save_model(nets.chain(), folder / "model.keras")
    write_phantom(folder / "phantom", n_train=400, n_test=20, size=32)
    return folder


def convert(folder: Path, *flags: str) -> int:
    source = [PRESET, f"--keras_model_file={folder / 'model.keras'}", f"--output_file={folder / 'made.tflite'}"]
    # Its random weights tell nothing apart, which the command would otherwise refuse.
    return main([*source, "--dataset=phantom", f"--data_dir={folder / 'phantom'}", "--force", *flags])


def labels_flag(folder: Path, *extra: str) -> str:
    findings = list(load_dataset("phantom", folder / "phantom").findings)
    return "--labels=" + ",".join([*findings, *extra][:4])


def test_convert_with_a_dataset_fits_each_file_on_dev(folder: Path, capsys: Capture) -> None:
    flags = [labels_flag(folder, "One", "Two", "Three", "Four"), "--quant_type=none,int8", "--format=json"]
    assert convert(folder, *flags) == 0
    printed = capsys.readouterr()
    json.loads(printed.out)
    assert "int8: thresholds, " in printed.err
    dataset = load_dataset("phantom", folder / "phantom")
    infos: list[ModelInfo] = []
    for name in ("none", "int8"):
        file = read_model(folder / f"made_{name}.tflite")
        infos.append(file.info)
        columns = [column for column, label in enumerate(file.info.labels) if label in dataset.findings]
        logits = file_logits(file.content, file.info, decode_split(dataset.dev, file.info.preprocess))[:, columns]
        chosen = choose_calibration(dataset.dev.labels[:, : len(columns)], logits, np.ones(len(columns)))
        assert [file.info.thresholds[column] for column in columns] == pytest.approx(chosen.thresholds)
        assert f"on {len(dataset.dev)} dev images of phantom, which the model must not" in file.info.threshold_source
        assert "not fitted" not in file.info.calibration_source.partition("; of ")[0]
    assert infos[0].thresholds != infos[1].thresholds  # each its own: int8 moves logits


def test_convert_with_a_dataset_of_other_findings_says_why_nothing_is_fitted(folder: Path, capsys: Capture) -> None:
    assert convert(folder, "--labels=One,Two,Three,Four", "--quant_type=int8") == 0
    assert "thresholds stay at 0.5: model and data set have no finding in common" in capsys.readouterr().err
    assert read_model(folder / "made.tflite").info.thresholds == (0.5,) * 4


def test_convert_without_fitting_leaves_thresholds_alone(folder: Path, capsys: Capture) -> None:
    flags = [labels_flag(folder, "One", "Two", "Three", "Four"), "--quant_type=int8", "--nofit_thresholds"]
    assert convert(folder, *flags) == 0
    assert "thresholds" not in capsys.readouterr().err
    info = read_model(folder / "made.tflite").info
    assert (info.thresholds, info.threshold_source) == ((0.5,) * 4, "0.5 by default, not chosen on data")


def test_convert_that_is_to_fit_without_images_fails(folder: Path, capsys: Capture) -> None:
    flags = [PRESET, f"--keras_model_file={folder / 'model.keras'}", f"--output_file={folder / 'x.tflite'}"]
    assert main([*flags, "--fit_thresholds"]) == 2
    assert "--fit_thresholds needs images with labels: give --dataset and --data_dir" in capsys.readouterr().err
