"""The whole way on phantom images, once: every stage is the real one, only small."""

from __future__ import annotations

import hashlib
import json
import re
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from cxr_compress.cli.report import main as report_main
from cxr_compress.data import PHANTOM_FINDINGS, decode_split, load_dataset, write_phantom
from cxr_compress.device.classifier import Classifier
from cxr_compress.device.modelfile import read_model
from cxr_compress.device.preprocess import PreprocessSpec, normalize
from cxr_compress.device.verify import verify_model
from cxr_compress.errors import BudgetError, CompressionError
from cxr_compress.keras2 import keras
from cxr_compress.lite import audit
from cxr_compress.models import tiny_chexnet
from cxr_compress.models.files import load_model, read_about, save_model
from cxr_compress.pipeline import run_recipe
from cxr_compress.pipeline.context import OF_TRAINING
from cxr_compress.pipeline.run import results
from cxr_compress.pipeline.store import MADE_FROM, refuse_foreign
from cxr_compress.recipe import make_recipe
from cxr_compress.sparsity import measure_sparsity
from cxr_compress.structured import ChannelPlan, measure_cost
from tests.cli.runner import errors_of
from tests.conftest import REPOSITORY
from tests.report.test_page import Page, outside

RECIPE = make_recipe(
    "tiny_chexnet",
    {
        "dataset": "phantom",
        "force": True,  # hardly trained, it is no better than chance, which a run refuses
        "input_size": 32,
        "epochs": 1,
        "recovery_epochs": 1,
        "sparsity_epochs": 2,
        "calibration_images": 32,
        "recalibration_images": 64,
        "bootstrap_samples": 50,
    },
)


@pytest.fixture(scope="module")
def phantom(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("phantom")
    write_phantom(folder, n_train=240, n_test=80, size=64)
    return folder


@pytest.fixture(scope="module")
def finished(phantom, tmp_path_factory):
    """One whole run and what it said on the way."""
    folder = tmp_path_factory.mktemp("run")
    log: list[str] = []
    report = run_recipe(RECIPE, data_dir=phantom, output_dir=folder, log=log.append)
    return folder, report, log


def test_run_reports_the_three_files_with_their_costs(finished):
    folder, report, _ = finished
    fp32, int8, compressed = report["rows"]
    assert [row["name"] for row in report["rows"]] == [
        "tiny_chexnet_fp32",
        "tiny_chexnet_int8",
        "tiny_chexnet_m50_w50_int8",
    ]
    assert fp32["macs"] == int8["macs"] == measure_cost(load_model(folder / "base.keras")).macs
    assert compressed["macs"] <= 0.5 * fp32["macs"]
    assert compressed["tflite_bytes"] < int8["tflite_bytes"] < fp32["tflite_bytes"]
    for row in report["rows"]:
        assert row["tflite_bytes"] == (folder / row["file"]).stat().st_size
        assert set(row["evaluation"]["findings"]) == set(PHANTOM_FINDINGS)


def test_run_keras_files_say_what_they_are_and_a_run_from_one_follows_it(finished, phantom, tmp_path):
    folder, _, _ = finished
    about = read_about(folder / "base.keras")
    assert (about.findings, about.dataset) == (tuple(PHANTOM_FINDINGS), "phantom")
    spec = PreprocessSpec.preset("tf", RECIPE.model.input_size, RECIPE.model.input_size)
    said = replace(about, preprocess=spec, pos_weight=(2.0,) * len(about.findings))
    save_model(load_model(folder / "base.keras"), tmp_path / "said.keras", about=said)
    recipe = RECIPE.with_values(target_macs=None, weight_sparsity=0.0, sparsity_epochs=0)
    run_recipe(recipe, data_dir=phantom, output_dir=tmp_path / "run", keras_model_file=tmp_path / "said.keras")
    kept = read_about(tmp_path / "run" / "base.keras")
    assert (kept.preprocess, kept.pos_weight) == (spec, said.pos_weight)
    (file,) = (tmp_path / "run").glob("*_fp32.tflite")
    assert read_model(file).info.preprocess == spec


def test_run_cost_in_the_plan_is_that_of_the_delivered_model(finished):
    folder, report, _ = finished
    plan = ChannelPlan.from_json((folder / "plan.json").read_text())
    assert measure_cost(load_model(folder / "sparse.keras")) == plan.after
    assert report["rows"][2]["params"] == plan.after.params


def test_run_every_stage_that_trains_depends_on_what_trainings_share(finished):
    folder, _, _ = finished
    for stage in ("base", "recover", "sparsify"):
        decided = json.loads((folder / "manifests" / f"{stage}.json").read_text())["inputs"]["recipe"]
        assert set(OF_TRAINING) <= set(decided), stage


def test_run_to_int16x8_makes_only_the_files_again_and_they_err_less(finished, phantom, tmp_path):
    folder = shutil.copytree(finished[0], tmp_path / "run")
    log: list[str] = []
    wide = RECIPE.with_values(quant_type="int16x8")
    report = run_recipe(wide, data_dir=phantom, output_dir=folder, log=log.append)
    assert {line.split(":")[0] for line in log if line.endswith(": started")} == {
        "preflight",
        "quantize",
        "export_compressed",
        "score",
    }
    assert report["rows"][2]["name"] == "tiny_chexnet_m50_w50_int16x8"
    test = load_dataset("phantom", phantom).test
    spec = PreprocessSpec(RECIPE.model.input_size, RECIPE.model.input_size)
    images = normalize(decode_split(test, spec), spec)
    exact, narrow, found = (
        Classifier(folder / f"tiny_chexnet_m50_w50_{name}.tflite").logits(images)
        for name in ("fp32", "int8", "int16x8")
    )
    # 256 times finer steps of the activations; weights are int8 in both.
    assert np.abs(found - exact).mean() < 0.5 * np.abs(narrow - exact).mean()


def test_run_folder_says_what_to_do_with_it(finished):
    folder, report, _ = finished
    compressed = report["rows"][2]
    text = (folder / "README.md").read_text()
    model = read_model(folder / compressed["file"])
    for said in (compressed["file"], model.sha256, "tiny_chexnet_m50_w50_int8.md", "report.json", "Research use only"):
        assert said in text
    assert str(folder) not in text
    assert "`report.png`" in text
    assert "`report.html`" in text
    assert (folder / "report.png").read_bytes().startswith(b"\x89PNG")
    card = (folder / "tiny_chexnet_m50_w50_int8.md").read_text()
    assert model.sha256 in card
    assert set(report["facts"]["seconds"]) >= {"base", "select", "recover", "sparsify", "quantize"}


def test_run_page_says_the_verdict_first_and_loads_nothing(finished):
    folder, report, _ = finished
    page = (folder / "report.html").read_text()
    assert list(outside(page)) == []
    assert page.index("cannot be judged" if report["facts"]["gate"]["reason"] else "asked of it") < page.index(
        "<table>"
    )
    words = " ".join(Page(page).text.split())
    compressed = report["rows"][2]
    digest = read_model(folder / compressed["file"]).sha256
    removed = json.loads((folder / "plan.json").read_text())["groups"]
    for said in (
        *(digest, "say nothing about patients", "What was not tested", "To be filled in", "of 17 fields are filled"),
        *(
            "missing: only who deploys it can say",
            *PHANTOM_FINDINGS,
            *removed,
            *(row["name"] for row in report["rows"]),
        ),
    ):
        assert said in words, said
    tables = re.findall(r"<table>.*?</table>", page, flags=re.DOTALL)
    assert all(table.count("<caption>") == 1 and '<th scope="col">' in table for table in tables)
    ids = [attributes["id"] for _, attributes in Page(page).elements if "id" in attributes]
    assert len(set(ids)) == len(ids)
    assert str(folder) not in page


def test_cxr_report_makes_the_same_again_and_refuses_what_is_no_finished_run(finished, tmp_path, capsys):
    folder = shutil.copytree(finished[0], tmp_path / "run")
    names = ("README.md", "report.html", "report.png", "tiny_chexnet_m50_w50_int8.md")
    before = {name: (folder / name).read_bytes() for name in names}
    for name in names:
        (folder / name).unlink()
    assert report_main([str(folder)]) == 0
    after = {name: (folder / name).read_bytes() for name in names}
    assert [name for name in names if after[name] != before[name]] == []
    page = tmp_path / "page.html"
    assert report_main([str(folder), f"--html={page}"]) == 0
    assert page.read_bytes() == after["report.html"]
    page.write_text("mine")
    assert report_main([str(folder), f"--html={page}"]) == 2
    assert page.read_text() == "mine"
    for broken in (folder / "manifests" / "base.json", folder / "plan.json"):
        kept = broken.read_text()
        broken.write_text("[1]")
        assert report_main([str(folder)]) == 2
        assert f"{broken.name} of the run cannot be read" in capsys.readouterr().err
        broken.write_text(kept)
    whole = json.loads((folder / "report.json").read_text())
    for part in ("facts", "dataset"):
        (folder / "report.json").write_text(json.dumps({key: value for key, value in whole.items() if key != part}))
        assert report_main([str(folder)]) == 2
        assert "is not the report of a whole run" in capsys.readouterr().err
    for row in whole["rows"]:
        row["comparison"] = None  # as before findings were judged one by one
    (folder / "report.json").write_text(json.dumps(whole))
    assert report_main([str(folder)]) == 0
    words = (folder / "report.html").read_text()
    assert "Findings and groups were not judged one by one" in words
    assert "No loss of AUROC is shown" not in words
    whole["facts"]["gate"]["loss"] = None
    (folder / "report.json").write_text(json.dumps(whole))
    assert report_main([str(folder)]) == 0
    assert "these images give no AUROC" in (folder / "report.html").read_text()
    compressed = folder / finished[1]["rows"][2]["file"]
    compressed.write_bytes((folder / finished[1]["rows"][1]["file"]).read_bytes())
    capsys.readouterr()
    wrongs = {folder: "is not the file that was scored", tmp_path: "holds no report.json", page: "is none"}
    for wrong, said in wrongs.items():
        assert report_main([str(wrong)]) == 2
        (line,) = errors_of(capsys.readouterr().err)
        assert said in line


def test_run_sparsity_is_what_was_asked_in_the_exported_files(finished):
    folder, report, _ = finished
    float_file = read_model(folder / "tiny_chexnet_m50_w50_fp32.tflite")
    # Each layer rounds to a whole weight: far below the half per cent that the run itself checks.
    assert audit(float_file.content).sparsity.fraction == pytest.approx(0.5, abs=0.005)
    assert report["rows"][2]["weight_sparsity"] >= 0.495
    assert measure_sparsity(load_model(folder / "recovered.keras")).total < 0.01, "control: nothing was zero before"


def test_run_delivered_model_loads_with_plain_keras_and_no_custom_objects(finished):
    folder, _, _ = finished
    model = keras.models.load_model(folder / "sparse.keras", compile=False)
    assert all(type(layer).__module__.startswith("tf_keras.") for layer in model.layers)


def test_run_files_describe_themselves(finished):
    folder, _, _ = finished
    path = folder / "tiny_chexnet_m50_w50_int8.tflite"
    info = read_model(path).info
    assert info.synthetic
    # Float, pruned, sparse: each is there, and is the file beside it.
    assert list(info.parents)[-1] == "sparse.keras"
    assert len(info.parents) >= 3
    for name, digest in info.parents.items():
        assert hashlib.sha256((folder / name).read_bytes()).hexdigest() == digest
    assert "dev images" in info.calibration_source
    assert info.canonical_hash in info.model_card
    found = verify_model(path)
    assert found.passed, found.to_text()
    assert info.labels == PHANTOM_FINDINGS
    assert "dev images" in info.threshold_source
    assert info.recipe["removal"]["budget"]["macs"] == 0.5
    assert str(folder) not in json.dumps(info.to_dict())


def test_run_device_classifier_equals_keras_on_the_float_file(finished, phantom):
    """What ships is what was trained: float file against Keras, on the same preprocessed image."""
    folder, _, _ = finished
    picture = load_dataset("phantom", phantom).test.paths[0]
    classifier = Classifier(folder / "tiny_chexnet_m50_w50_fp32.tflite")
    model = load_model(folder / "sparse.keras")
    from cxr_compress.device.preprocess import preprocess

    image = preprocess(picture, classifier.spec)[np.newaxis]
    expected = model(image).numpy()[0]
    # Same float32 sums in another order: 1e-4 of logits of about 1; the control is another image, above 1e-3.
    np.testing.assert_allclose(classifier.predict(picture).logits, expected, atol=1e-4)
    other = preprocess(load_dataset("phantom", phantom).test.paths[1], classifier.spec)[np.newaxis]
    assert np.abs(model(other).numpy()[0] - expected).max() > 1e-3


def test_run_every_file_that_it_writes_is_refused_in_the_folder_of_another(finished, tmp_path):
    folder, _, _ = finished
    for number, path in enumerate(path for path in folder.rglob("*") if path.is_file() and path.name != MADE_FROM):
        copy = tmp_path / str(number) / path.relative_to(folder)
        copy.parent.mkdir(parents=True)
        copy.touch()
        with pytest.raises(CompressionError, match="is not a run of cxr_compress"):
            refuse_foreign(tmp_path / str(number), RECIPE, results(), overwrite=False)


def test_run_again_keeps_every_stage(finished, phantom):
    folder, report, _ = finished
    log: list[str] = []
    again = run_recipe(RECIPE, data_dir=phantom, output_dir=folder, log=log.append)
    assert again == report
    assert log
    stages = [line for line in log if not line.startswith(("way: ", "about ")) and "original model" not in line]
    assert all(line.endswith("done before, kept") for line in stages)


def test_run_log_name_no_image_and_no_folder(finished, phantom):
    folder, _, log = finished
    names = {path.stem for path in load_dataset("phantom", phantom).train.paths}
    text = "\n".join(log)
    assert not any(name in text for name in names)
    assert str(phantom) not in text
    assert str(folder) not in text


def test_run_from_a_file_of_the_wrong_shape_says_what_was_expected(phantom, tmp_path):
    save_model(tiny_chexnet(3, (32, 32, 3)), tmp_path / "three.keras")
    save_model(tiny_chexnet(5, (64, 64, 3)), tmp_path / "large.keras")

    def run(name, **changes):
        recipe = RECIPE.with_values(**changes)
        run_recipe(recipe, data_dir=phantom, output_dir=tmp_path / "out", keras_model_file=tmp_path / name)

    with pytest.raises(CompressionError, match="does not name its 3 outputs"):
        run("three.keras")
    with pytest.raises(CompressionError, match=r"each of the model's 3 outputs, .* has 5"):
        run("three.keras", match="position")
    with pytest.raises(CompressionError, match="expected 3 labels, one for each output of the model in their order"):
        run("three.keras", labels=("Mass", "Nodule"))
    with pytest.raises(CompressionError, match="the model also answers Martian, which phantom says nothing about"):
        run("three.keras", labels=(*PHANTOM_FINDINGS[:2], "Martian"))
    with pytest.raises(CompressionError, match=r"takes images of \(64, 64, 3\), the run makes \(32, 32, 3\)"):
        run("large.keras", match="position", preset="unit")


def test_run_unreachable_budget_says_the_minimum_and_keeps_the_trained_model(finished, phantom):
    folder, _, _ = finished
    recipe = RECIPE.with_values(target_macs=0.001)
    before = (folder / "base.keras").read_bytes()
    with pytest.raises(BudgetError, match="reachable are"):
        run_recipe(recipe, data_dir=phantom, output_dir=folder)
    assert (folder / "base.keras").read_bytes() == before


def test_ship_model_writes_file_card_and_hash(finished, tmp_path):
    folder, report, _ = finished
    command = [
        sys.executable,
        "experiments/ship_model.py",
        f"--run_dir={folder}",
        "--name=small",
        f"--shelf={tmp_path}",
        f"--weights={tmp_path / 'kept' / 'weights.npz'}",
    ]
    subprocess.run([*command, "--population=drawn"], cwd=REPOSITORY, check=True, capture_output=True)
    model = read_model(tmp_path / "small.tflite")
    assert (tmp_path / "SHA256SUMS").read_text() == f"{model.sha256}  small.tflite\n"
    with np.load(tmp_path / "kept" / "weights.npz", allow_pickle=False) as weights:
        assert {weights[name].dtype.name for name in weights.files if "|" in name} == {"float16"}
    card = (tmp_path / "small.md").read_text()
    for said in (
        model.sha256,
        "`small.tflite`",
        "SYNTHETIC",
        "(drawn)",
        "Research use only",
        f"{report['rows'][2]['params']:,}",
    ):
        assert said in card


def test_ship_model_of_another_run_is_refused(finished, tmp_path):
    folder, _, _ = finished
    other = {**json.loads((folder / "report.json").read_text()), "facts": {}}
    (tmp_path / "report.json").write_text(json.dumps(other))
    name = "tiny_chexnet_m50_w50_int8.tflite"
    (tmp_path / name).write_bytes((folder / name).read_bytes())
    command = [sys.executable, "experiments/ship_model.py", f"--run_dir={tmp_path}", f"--shelf={tmp_path / 'shelf'}"]
    done = subprocess.run(command, cwd=REPOSITORY, check=False, capture_output=True, text=True)
    assert done.returncode == 1
    assert done.stderr.strip().startswith("ship_model: the report is not of the run that made")
    assert not (tmp_path / "shelf").exists()
