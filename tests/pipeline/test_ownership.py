"""Whose an output folder is, told from the few files that say so."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import pytest

from cxr_compress.errors import CompressionError
from cxr_compress.pipeline.run import results
from cxr_compress.pipeline.store import MADE_FROM, claim, copy_for_forecast, is_run, refuse_foreign
from cxr_compress.recipe import Recipe, make_recipe

RECIPE = make_recipe("tiny_chexnet", {"dataset": "phantom"})
TRAINED = {"source": "a training", "training": {"epochs": 2, "seed": 0}, "dataset": "phantom", "images": "i1"}
PLANNING = ("base", "select")
FROM_FILE = {"source": "a model file", "weights": "w1", "dataset": "phantom", "images": "i1"}


def older(folder: Path, made_from: dict) -> None:
    """A run as it was left before made_from.json was kept: the same facts, in its manifests."""
    (folder / MADE_FROM).unlink()
    (folder / "manifests").mkdir()
    inputs = (
        {"recipe": made_from["training"], "images": "i1", "parents": []}
        if "training" in made_from
        else {"weights": "w1"}
    )
    for stage, values in {
        "base": inputs,
        "recover": {"images": "i1", "parents": ["base"]},
        "score": {"images": "test"},
    }.items():
        manifest = {"inputs": values, "files": {}}
        (folder / "manifests" / f"{stage}.json").write_text(json.dumps(manifest))


@pytest.mark.parametrize("of_before", [False, True])
@pytest.mark.parametrize(
    ("first", "then", "text"),
    [
        (TRAINED, {**TRAINED, "training": {"epochs": 3, "seed": 0}}, "differs in epochs (there 2, now 3):"),
        (TRAINED, {**TRAINED, "images": "i2"}, "differs in the images, labels or patients of train and dev:"),
        (TRAINED, FROM_FILE, "differs in what it starts from:"),
        (FROM_FILE, TRAINED, "differs in what it starts from:"),
        (FROM_FILE, {**FROM_FILE, "weights": "w2"}, "differs in the weights of the model to start from:"),
        (FROM_FILE, {**FROM_FILE, "images": "i2"}, "differs in the images, labels or patients of train and dev:"),
    ],
)
def test_claim_goes_on_with_the_same_and_refuses_what_started_from_another(
    tmp_path: Path, first: dict, then: dict, text: str, *, of_before: bool
) -> None:
    run = tmp_path / "run"
    claim(run, RECIPE, first, first_stage="base", overwrite=False)
    assert Recipe.from_json((run / "recipe.json").read_text()) == RECIPE
    if of_before:
        older(run, first)
    assert is_run(run)
    refuse_foreign(run, RECIPE, results(), overwrite=False)
    claim(run, RECIPE, first, first_stage="base", overwrite=False)
    if of_before:
        (run / MADE_FROM).unlink()
    before = {path: path.read_bytes() for path in run.rglob("*.json")}
    with pytest.raises(CompressionError) as caught:
        claim(run, RECIPE.with_values(dataset="nih"), then, first_stage="base", overwrite=False)
    assert str(caught.value).startswith("--output_dir holds another run; it ")
    assert text in str(caught.value)
    assert {path: path.read_bytes() for path in run.rglob("*.json")} == before
    claim(run, RECIPE, then, first_stage="base", overwrite=True)
    assert json.loads((run / MADE_FROM).read_text()) == then


def test_claim_of_a_record_that_a_kill_cut_short_goes_by_the_manifests(tmp_path: Path) -> None:
    claim(tmp_path, RECIPE, FROM_FILE, first_stage="base", overwrite=False)
    older(tmp_path, FROM_FILE)
    (tmp_path / MADE_FROM).write_text('{"weights": "w')
    with pytest.raises(CompressionError, match="differs in the weights"):
        claim(tmp_path, RECIPE, {**FROM_FILE, "weights": "w2"}, first_stage="base", overwrite=False)


def test_copy_for_forecast_takes_what_stands_of_a_run_and_nothing_of_another_folder(tmp_path: Path) -> None:
    run, scratch = tmp_path / "run", tmp_path / "scratch"
    claim(run, RECIPE, FROM_FILE, first_stage="base", overwrite=False)
    (run / "manifests").mkdir()
    for stage, name in (("base", "base.keras"), ("recover", "recovered.keras"), ("select", "plan.json")):
        (run / name).write_text(stage)
        (tmp_path / "up").write_text("not of the run")
        files = {path: hashlib.sha256((run / path).read_bytes()).hexdigest() for path in (name, "../up")}
        (run / "manifests" / f"{stage}.json").write_text(json.dumps({"files": files}))
    (scratch / "below").mkdir(parents=True)
    copy_for_forecast(run, scratch / "below", PLANNING)
    assert [path.name for path in scratch.iterdir()] == ["below"]
    scratch /= "below"
    found = sorted(path.relative_to(scratch).as_posix() for path in scratch.rglob("*") if path.is_file())
    assert found == ["base.keras", MADE_FROM, "manifests/base.json", "manifests/select.json", "plan.json"]
    (run / "plan.json").write_text("edited")
    (tmp_path / "after").mkdir()
    copy_for_forecast(run, tmp_path / "after", PLANNING)
    assert not (tmp_path / "after" / "plan.json").exists(), "the run makes it again"
    other = tmp_path / "other"
    other.mkdir()
    (tmp_path / "empty").mkdir()
    (other / "base.keras").write_text("mine")
    copy_for_forecast(other, tmp_path / "empty", PLANNING)
    assert list((tmp_path / "empty").iterdir()) == []


@pytest.mark.parametrize(
    "name", ["original.json", "manifests/base.json", "quantized/float.tflite", "candidates/a/report.json", "plan.json"]
)
def test_refuse_foreign_names_whatever_a_run_would_replace(tmp_path: Path, name: str) -> None:
    (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / "notes.txt").write_text("mine")
    refuse_foreign(tmp_path, RECIPE, results(), overwrite=False)
    (tmp_path / name).write_text("mine")
    with pytest.raises(CompressionError, match="is not a run of cxr_compress"):
        refuse_foreign(tmp_path, RECIPE, results(), overwrite=False)
    refuse_foreign(tmp_path, RECIPE, results(), overwrite=True)
