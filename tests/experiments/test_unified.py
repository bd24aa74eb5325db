"""The table of unified runs: a smoke run fills it, and what is made of its rows."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

from cxr_compress.recipe import AugmentRanges, Recipe, make_recipe
from tests.conftest import REPOSITORY

EXPERIMENTS = REPOSITORY / "experiments"


def run(script: str, *arguments: str) -> str:
    environment = {key: value for key, value in os.environ.items() if key != "CXR_DATA"}
    command = [sys.executable, str(EXPERIMENTS / script), *arguments]
    done = subprocess.run(command, cwd=REPOSITORY, env=environment, check=False, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout


@pytest.fixture(scope="module")
def unified() -> ModuleType:
    """The script as a module; it defines its flags only once."""
    spec = importlib.util.spec_from_file_location("unified", EXPERIMENTS / "unified.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["unified"] = module  # dataclasses look their module up
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(EXPERIMENTS)  # as for a script, whose neighbors are importable
        spec.loader.exec_module(module)
    return module


def test_unified_smoke_fills_rows_that_the_table_shows(tmp_path):
    pytest.importorskip("matplotlib")
    shown = run("unified.py", "--smoke", f"--run_dir={tmp_path}")
    assert shown.count("x faster") == 2
    results = json.loads((tmp_path / "unified.json").read_text())
    row, other = results["rows"]["unified"], results["rows"]["removal"]
    assert 0.2 < row["macs_fraction"] <= 0.5
    assert row["deflated_bytes"] < other["deflated_bytes"], "zeros show in the deflated size"
    assert row["tflite_bytes"] < row["original"]["tflite_bytes"] / 4
    assert row["size"] == 64, "not that of the training"
    assert row["latency"]["original"]["runtime"] == row["latency"]["row"]["runtime"]
    assert row["seconds"] > 0
    assert row["peak_memory_bytes"] > 1e8
    (compared,) = results["comparisons"]
    assert (compared["row"], compared["other"], compared["smaller"]) == ("unified", "removal", False)
    # The same paired difference as between the two reports, up to what they subtract: both are against the original
    # one.
    assert compared["value"] == pytest.approx(row["difference"]["value"] - other["difference"]["value"], abs=1e-9)
    assert run("unified.py", "--smoke", f"--run_dir={tmp_path}").startswith("all rows are there")
    text = run("unified_table.py", f"--results={tmp_path / 'unified.json'}")
    assert text.count("\n|") == 1 + 1 + 2
    assert "unified, 50% zeros" in text
    assert "Research use only" in text
    assert (tmp_path / "unified.png").read_bytes().startswith(b"\x89PNG")


def test_unified_rows_are_recipes_of_equal_epochs_that_differ_in_what_they_show(unified):
    recipes = {name: make_recipe("chexnet", plan.changes) for name, plan in unified.ROWS.items()}
    assert len(set(map(str, recipes.values()))) == len(recipes)
    epochs = {
        name: (recipe.recovery.epochs if recipe.removal.removes_filters else 0)
        + (recipe.sparsity.epochs + recipe.sparsity.finetune_epochs if recipe.sparsity.zeroes_weights else 0)
        for name, recipe in recipes.items()
    }
    assert {epochs[name] for name in epochs if name != "int8"} == {8}
    assert epochs["int8"] == 0, "nothing is trained there"
    assert recipes["unified_1000kB"].removal.budget.bounds == {"macs": 0.12, "tflite_bytes": 1_000_000}


def test_unified_trainings_change_every_row_alike(unified):
    for name, plan in unified.ROWS.items():
        usual, as_original, patient = (unified.recipe_of(plan, "kermany", 160, one) for one in unified.TRAININGS)
        assert usual.training.augment == AugmentRanges(), name
        assert (usual.recovery.distill_weight, usual.model.input_size) == (0.7, 160), name
        assert as_original.training.augment == patient.training.augment != AugmentRanges()
        assert (as_original.training.weight_decay, as_original.recovery.distill_weight) == (0.01, 0.7)
        assert patient.recovery.distill_weight == 1.0
        for field in ("recovery_epochs", "sparsity_epochs", "finetune_epochs"):
            assert as_original.value(field) == usual.value(field)
            if field in plan.changes:
                assert patient.value(field) == 2 * usual.value(field)


@pytest.mark.parametrize(
    ("size", "training", "name"),
    [
        (None, "usual", "unified.json"),
        (160, "usual", "unified_160.json"),
        (160, "as_original", "unified_160_as_original.json"),
        (None, "patient", "unified_patient.json"),
    ],
)
def test_unified_rows_of_another_size_or_training_go_to_a_file_of_their_own(unified, size, training, name):
    assert unified.results_name(size, training) == name


def test_recipe_of_a_megabyte_is_that_of_its_row(unified):
    kept = Recipe.from_json((EXPERIMENTS / "recipes" / "chexnet_1MB.json").read_text(encoding="utf-8"))
    assert kept == unified.recipe_of(unified.ROWS["unified_1000kB"], "kermany", 160, "patient")


def row(method: str, deflated: int) -> dict[str, Any]:
    return {"method": method, "deflated_bytes": deflated}


def keep(folder: Path, name: str, noise: float) -> None:
    """Logits of 300 images that tell the classes apart the better the less noise."""
    rng = np.random.default_rng(0)
    labels = (rng.random((300, 1)) < 0.5).astype(np.float32)
    logits = (labels + noise * rng.normal(size=labels.shape)).astype(np.float32)
    (folder / name).mkdir()
    np.savez(folder / name / "test_logits.npz", logits=logits, labels=labels, patients=np.arange(300))


def test_unified_compare_takes_the_row_with_the_fewest_bytes_that_are_no_fewer(unified, tmp_path):
    sizes = {"u": ("unified", 1000), "p_small": (unified.PRUNING, 900), "p": (unified.PRUNING, 1100)}
    sizes |= {"p_large": (unified.PRUNING, 3000), "r": (unified.REMOVAL, 800), "unseen": (unified.REMOVAL, 1000)}
    for name in sizes:
        if name != "unseen":
            keep(tmp_path, name, 0.5 if name == "u" else 1.0)
    found = unified.compare({"rows": {name: row(*size) for name, size in sizes.items()}}, tmp_path)
    assert [(one["row"], one["other"], one["smaller"]) for one in found] == [("u", "p", False), ("u", "r", True)]
    assert all(one["low"] > 0 for one in found)


def test_unified_compare_of_rows_on_other_images_is_refused(unified, tmp_path):
    from cxr_compress.errors import DataError

    for name, images in (("u", 300), ("p", 299)):
        keep(tmp_path, name, 1.0)
        with np.load(tmp_path / name / "test_logits.npz") as file:
            np.savez(tmp_path / name / "test_logits.npz", **{key: file[key][:images] for key in file.files})
    rows = {"u": row("unified", 1), "p": row(unified.PRUNING, 2)}
    with pytest.raises(DataError, match="the rows u and p were scored on different images"):
        unified.compare({"rows": rows}, tmp_path)


def test_unified_source_of_a_file_is_what_it_was_made_from_or_an_error(unified, tmp_path):
    import hashlib
    from types import SimpleNamespace

    from cxr_compress.errors import DataError

    (tmp_path / "sparse.keras").write_bytes(b"weights")
    sha256 = hashlib.sha256(b"weights").hexdigest()
    info = SimpleNamespace(parents={"sparse.keras": sha256})
    file = SimpleNamespace(info=info, path=tmp_path / "m.tflite")
    assert unified.source_of(tmp_path, file) == tmp_path / "sparse.keras"
    (tmp_path / "sparse.keras").write_bytes(b"others")
    with pytest.raises(DataError, match=r"expected the Keras model of m.tflite beside it"):
        unified.source_of(tmp_path, file)


def test_unified_results_of_another_format_are_left_alone(unified, tmp_path):
    from cxr_compress.errors import DataError

    path = tmp_path / "unified.json"
    for content in ("{", '{"format": 99}'):
        path.write_text(content)
        with pytest.raises(DataError, match=r"expected the results of unified.py"):
            unified.read_results(path)
    assert path.read_text() == content
