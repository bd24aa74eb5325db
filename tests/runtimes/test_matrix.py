"""Every quant type where it says it runs: each environment has one runtime alone, and verifies the same files.

The environments are Pythons named by $CXR_LITERT_PYTHON, $CXR_TFLITE_PYTHON and $CXR_AARCH64_PYTHON, as `make test`
builds them; a column whose variable is not set is skipped. The networks are trained ones: others amplify any rounding,
and two runtimes then differ by dozens of codes.
"""

from __future__ import annotations

import json
import os
import subprocess
from dataclasses import replace
from pathlib import Path

import pytest

from cxr_compress.data import decode_split, load_dataset, write_phantom
from cxr_compress.device.modelfile import ModelInfo, pack_model, read_model
from cxr_compress.device.preprocess import normalize
from cxr_compress.device.spec import PreprocessSpec
from cxr_compress.device.verify import verify_model
from cxr_compress.lite import QUANT_TYPES, convert, pack_file
from cxr_compress.models import chexnet, load_npz_weights, tiny_chexnet
from cxr_compress.structured import Budget, analyze_channels, remove_channels, score_channels, select_channels
from tests.conftest import REPOSITORY

SIZE = 64
WEIGHTS = REPOSITORY / "experiments" / "results"
FINDINGS = ("Pneumonia",)
VERIFY = "import sys; from cxr_compress.cli.verify import main; sys.exit(main(sys.argv[1:]))"
RUNTIMES = {
    "litert": ("CXR_LITERT_PYTHON", "ai-edge-litert"),
    "tflite-runtime 2.14": ("CXR_TFLITE_PYTHON", "tflite-runtime 2.14"),
    "tflite-runtime 2.14 on aarch64": ("CXR_AARCH64_PYTHON", "tflite-runtime 2.14"),
}


def info(name: str, quant_type: str) -> ModelInfo:
    return ModelInfo(
        model_name=name,
        labels=FINDINGS,
        preprocess=PreprocessSpec.preset("imagenet_torch", SIZE, SIZE),
        logit_slope=(1.0,),
        logit_offset=(0.0,),
        thresholds=(0.5,),
        threshold_source="0.5, for a test",
        quant_type=quant_type,
    )


@pytest.fixture(scope="module")
def files(tmp_path_factory) -> dict[str, Path]:
    """tiny_chexnet in every quant type, and DenseNet121 with a quarter of its MACs in two; by name."""
    folder = tmp_path_factory.mktemp("phantom")
    write_phantom(folder, n_train=72, n_test=8, size=SIZE)
    spec = PreprocessSpec.preset("imagenet_torch", SIZE, SIZE)
    images = normalize(decode_split(load_dataset("phantom", folder).train, spec), spec)
    tiny = tiny_chexnet(1, (SIZE, SIZE, 3))
    load_npz_weights(tiny, WEIGHTS / "tiny_chexnet_kermany" / "weights_fp16.npz")
    whole = chexnet(1, (SIZE, SIZE, 3))
    load_npz_weights(whole, WEIGHTS / "chexnet_kermany" / "weights_fp16.npz")
    analysis = analyze_channels(whole)
    plan = select_channels(analysis, score_channels(whole, analysis), Budget(macs=0.25), scope="local")
    pruned = remove_channels(whole, plan)
    folder, found = tmp_path_factory.mktemp("files"), {}
    wanted = (
        ("tiny_chexnet", tiny, list(QUANT_TYPES)),
        ("chexnet_m25", pruned, ["none", "int8"]),
    )
    for name, model, quant_types in wanted:
        for quant_type, lite in convert(model, quant_types, calibration=[images]).items():
            path = found[f"{name}_{quant_type}"] = folder / f"{name}_{quant_type}.tflite"
            path.write_bytes(pack_file(lite.content, info(name, quant_type)))
    return found


def verify_there(python: str, *paths: Path) -> tuple[int, dict]:
    command = [python, "-c", VERIFY, f"--model={','.join(map(str, paths))}", "--format=json"]
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    done = subprocess.run(command, cwd=REPOSITORY, env=environment, check=False, capture_output=True, text=True)
    assert done.returncode in (0, 3), done.stderr[-2000:]
    return done.returncode, json.loads(done.stdout)


@pytest.mark.densenet
@pytest.mark.parametrize("where", RUNTIMES)
def test_every_quant_type_answers_as_recorded(files, where):
    variable, runtime = RUNTIMES[where]
    if variable not in os.environ:
        pytest.skip(f"no environment with {where} alone: set {variable} to its Python")
    code, report = verify_there(os.environ[variable], *files.values())
    found = {Path(row["model"]).stem: row for row in report["models"]}
    assert set(found) == set(files)
    assert all(row["runtime"].startswith(runtime) for row in found.values())
    assert {name for name, row in found.items() if not row["passed"]} == set(), report
    assert code == 0


@pytest.mark.densenet
@pytest.mark.parametrize("name", ["tiny_chexnet_none", "tiny_chexnet_int8", "chexnet_m25_int8"])
def test_verify_control_record_of_the_images_in_another_order_fails(files, name, tmp_path):
    """The tolerances are far below what a file answers to one image and to another."""
    file = read_model(files[name])
    turned = replace(file.info.reference, logits=file.info.reference.logits[::-1])
    (tmp_path / "turned.tflite").write_bytes(pack_model(file.content, replace(file.info, reference=turned)))
    assert verify_model(files[name]).passed
    assert not verify_model(tmp_path / "turned.tflite").passed
