"""cxr_import_weights: a foreign archive becomes a model file, or one clear line and exit code 2."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from cxr_compress.cli.import_weights import main


def foreign(folder: Path, name: str = "weights.npz", **arrays) -> Path:
    path = folder / name
    np.savez(path, **arrays)
    return path


def error_line(capsys) -> str:
    out, err = capsys.readouterr()
    assert out == ""
    lines = err.splitlines()
    assert len(lines) == 1
    return lines[0]


@pytest.mark.densenet
def test_import_weights_matching_archive_writes_the_model_and_reports_what_matched(tmp_path, capsys):
    from cxr_compress.models import chexnet
    from cxr_compress.models.files import load_model

    model = chexnet(2)
    names = [variable.name.replace("logits/", "predictions/") for variable in model.weights]
    halves = [weight.astype(np.float16) for weight in model.get_weights()]
    arrays = {f"{index:03d}|{name}": half for index, (name, half) in enumerate(zip(names, halves, strict=True))}
    source, target = foreign(tmp_path, **arrays), tmp_path / "model.keras"
    flags = ["--from=npz", f"--input_file={source}", f"--output_file={target}", "--num_classes=2", "--input_size=64"]
    assert main([*flags, "--format=json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["arrays"] == 606
    assert report["parameters"] == 7_037_504 + 1024 * 2 + 2
    assert report["stored_dtype"] == "float16"
    assert report["num_classes"] == 2
    assert report["about"]["findings"] == ["finding_1", "finding_2"]
    assert report["new_head"] is False
    assert report["renamed"] == {f"predictions/{name}:0": f"logits/{name}:0" for name in ("kernel", "bias")}
    assert report["file_bytes"] == target.stat().st_size
    assert "Research use only" in report["intended_use"]
    loaded = load_model(target)
    assert loaded.input_shape == (None, 64, 64, 3)
    for weight, half in zip(loaded.get_weights(), halves, strict=True):
        np.testing.assert_array_equal(weight, half.astype(np.float32))


@pytest.mark.densenet
def test_import_weights_archive_of_another_network_ends_with_2_and_writes_nothing(tmp_path, capsys):
    source, target = foreign(tmp_path, weight=np.zeros(3, np.float32)), tmp_path / "model.keras"
    assert main([f"--input_file={source}", f"--output_file={target}"]) == 2
    assert "weights.npz holds 1 arrays, the model has 606 variables" in error_line(capsys)
    assert not target.exists()


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ([], "expected --input_file=FILE, got none"),
        (["--input_file=w.npz"], "expected --output_file=FILE, got none"),
        (["--input_file=w.npz", "--output_file=m.h5"], "expected an --output_file that ends in .keras, got 'm.h5'"),
        (["--input_file=w.npz", "--output_file=m.keras"], "expected --input_file to be a file, got 'w.npz'"),
        (["--input_file=w.npz", "--output_file=m.keras", "extra"], "expected flags only, got 'extra'"),
        (["--from=onnx"], "from"),
        (["--num_classes=0"], "num_classes"),
    ],
)
def test_import_weights_wrong_flag_ends_with_one_line_and_2(flags, message, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(flags) == 2
    assert message in error_line(capsys)


def test_import_weights_images_too_small_for_the_network_end_with_one_line_and_2(tmp_path, capsys):
    source = foreign(tmp_path, weight=np.zeros(3, np.float32))
    assert main([f"--input_file={source}", f"--output_file={tmp_path / 'model.keras'}", "--input_size=31"]) == 2
    assert "(31, 31, 3) is too small: the network halves the image five times" in error_line(capsys)


def lite0_state() -> dict[str, np.ndarray]:
    """Zeros with the names and shapes of ImageNet's EfficientNet-Lite0, and ones where zeros would be no network."""
    from cxr_compress.models import efficientnet_lite0
    from tests.models.imports.test_foreign import lite_name, torch_state

    return torch_state(efficientnet_lite0(1000, (32, 32, 3)), lite_name)


def test_import_weights_torch_file_becomes_a_model_that_says_what_it_is_for(tmp_path, capsys):
    from cxr_compress.models import load_model, read_about
    from tests.models.torch_files import write_legacy

    source, target = write_legacy(tmp_path / "lite0.pth", lite0_state()), tmp_path / "model.keras"
    flags = ["--from=efficientnet_lite0", f"--input_file={source}", f"--output_file={target}", "--num_classes=2"]
    assert main([*flags, "--labels=Mass,Nodule", "--input_size=32", "--attribution=us", "--format=json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert (report["network"], report["file_kind"], report["outputs_in_file"]) == (
        "efficientnet_lite0", "torch legacy", 1000
    )  # fmt: skip
    assert report["fresh"] == ["logits/kernel:0", "logits/bias:0"]
    about = read_about(target)
    assert about is not None
    assert (about.findings, about.attribution) == (("Mass", "Nodule"), "us")
    assert about.to_dict() == report["about"]
    assert load_model(target).output_shape == (None, 2)


def test_import_weights_same_command_twice_writes_the_same_bytes(tmp_path, capsys):
    from tests.models.torch_files import write_zip

    source = write_zip(tmp_path / "lite0.pt", lite0_state())
    targets = [tmp_path / "a.keras", tmp_path / "b.keras"]
    for target in targets:
        flags = [f"--input_file={source}", f"--output_file={target}", "--num_classes=2", "--input_size=32"]
        assert main(["--from=efficientnet_lite0", *flags]) == 0
    assert targets[0].read_bytes() == targets[1].read_bytes()
    assert "efficientnet_lite0" in capsys.readouterr().out


def test_import_weights_pickle_bomb_ends_with_2_and_writes_nothing(tmp_path, capsys):
    from tests.models.torch_files import Call, Name, write_zip

    bomb = Call(Name("os", "system"), (f"echo boom > {tmp_path / 'canary'}",))
    source, target = write_zip(tmp_path / "bomb.pt", {"state_dict": bomb}), tmp_path / "model.keras"
    assert main(["--from=chexnet_torch", f"--input_file={source}", f"--output_file={target}"]) == 2
    line = error_line(capsys)
    assert "bomb.pt: it asks to run os.system, which no network needs: the file is refused" in line
    assert sorted(path.name for path in tmp_path.iterdir()) == ["bomb.pt"]


def test_import_weights_help_loads_no_tensorflow():
    check = (
        "import sys\n"
        "from cxr_compress.cli.import_weights import main\n"
        "code = main(['--helpshort'])\n"
        "sys.exit(code or 'tensorflow' in sys.modules)\n"
    )
    result = subprocess.run(
        [sys.executable, "-c", check],
        check=False,
        capture_output=True,
        text=True,
        cwd=Path(__file__).resolve().parents[2],
        env=dict(os.environ),
    )
    assert result.returncode == 0, result.stderr
    assert "--input_file" in result.stdout
