"""Signing what cxr_convert writes, and asking for the signature in cxr_predict."""

from __future__ import annotations

from pathlib import Path

import pytest

from cxr_compress.cli.convert import main as convert_main
from cxr_compress.cli.predict import main as predict_main
from cxr_compress.device.modelfile import read_model, sign_file, verify_signature
from cxr_compress.device.verify import verify_model
from cxr_compress.models.files import save_model
from tests.device.images import draw_image, png
from tests.device.reference import INT8_MODEL
from tests.lite import nets

pytest.importorskip("cryptography", reason="the extra sign is not installed")

from tests.device.test_signature import write_keys

PRESET = "--preset=imagenet_torch"  # of models whose file does not say it


def test_convert_signs_every_file_it_writes(tmp_path: Path) -> None:
    private, public = write_keys(tmp_path, 1)
    save_model(nets.chain(), tmp_path / "model.keras")
    flags = [PRESET, f"--keras_model_file={tmp_path / 'model.keras'}", "--quant_type=none,fp16", "--labels=a,b,c,d"]
    assert convert_main([*flags, f"--output_file={tmp_path / 'x.tflite'}", f"--sign_key={private}"]) == 0
    for name in ("x_none.tflite", "x_fp16.tflite"):
        verify_signature(tmp_path / name, public)
        info = read_model(tmp_path / name).info
        assert info.calibration_source == "not fitted on data"
        assert verify_model(tmp_path / name).passed
    names = {path.name for path in tmp_path.glob("x*")}
    assert names == {"x_none.tflite", "x_none.tflite.sig", "x_fp16.tflite", "x_fp16.tflite.sig"}


def test_convert_key_that_cannot_be_used_ends_before_the_conversion(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    _, public = write_keys(tmp_path, 1)
    save_model(nets.chain(), tmp_path / "model.keras")
    flags = [PRESET, f"--keras_model_file={tmp_path / 'model.keras'}", f"--output_file={tmp_path / 'x.tflite'}"]
    assert convert_main([*flags, f"--sign_key={public}"]) == 2
    said = capsys.readouterr().err.strip().splitlines()
    assert len(said) == 1
    assert "cannot be used as private key" in said[0]
    assert not (tmp_path / "x.tflite").exists()


def test_predict_asks_for_the_signature_where_a_key_is_given(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    private, public = write_keys(tmp_path, 1)
    _, other = write_keys(tmp_path, 2, "other")
    model, image = tmp_path / "model.tflite", tmp_path / "image.png"
    model.write_bytes(INT8_MODEL.read_bytes())
    image.write_bytes(png(draw_image(0)))
    call = [f"--model={model}", str(image)]
    assert predict_main([*call, f"--public_key={public}"]) == 2
    assert "has no signature model.tflite.sig" in capsys.readouterr().err
    sign_file(model, private)
    assert predict_main([*call, f"--public_key={public}"]) == 0
    capsys.readouterr()
    assert predict_main([*call, f"--public_key={other}"]) == 2
    said = capsys.readouterr()
    assert "its signature is not by the key other_public.pem" in said.err
    assert said.out == ""
    assert predict_main(call) == 0  # without the flag nobody asks
