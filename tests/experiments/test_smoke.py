"""Every experiment runs from its file, in its --smoke form, and writes nothing into experiments/results/."""

from __future__ import annotations

import csv
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from cxr_compress.recipe import Recipe
from tests.conftest import REPOSITORY
from tests.device.reference.make_reference import INT8_MODEL

EXPERIMENTS = REPOSITORY / "experiments"
RESULTS = EXPERIMENTS / "results"


def run(script: str, *arguments: str) -> str:
    """What a script prints; its failure is the test's."""
    environment = {key: value for key, value in os.environ.items() if key != "CXR_DATA"}
    command = [sys.executable, str(EXPERIMENTS / script), "--smoke", *arguments]
    done = subprocess.run(command, cwd=REPOSITORY, env=environment, check=False, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout


@pytest.fixture(autouse=True)
def results_stay_as_they_are():
    def state() -> dict[Path, int]:
        return {path: path.stat().st_mtime_ns for path in RESULTS.glob("*")}

    before = state()
    yield
    assert state() == before


def test_bench_structured_smoke_meets_its_budget_with_both_scopes():
    result = json.loads(run("bench_structured.py"))
    assert set(result["half"]) == {"global", "local"}
    assert all(row["macs_fraction"] <= 0.5 for row in result["half"].values())


def test_bench_startup_smoke_loads_no_tensorflow_to_predict():
    result = json.loads(run("bench_startup.py", f"--model={INT8_MODEL}"))
    assert result["seconds"]["predict_one_png"] < result["seconds"]["import_tensorflow"]


def test_demo_smoke_goes_the_whole_way_on_phantom_images(tmp_path):
    shown = run("demo.py", f"--output_dir={tmp_path / 'demo'}")
    assert "SYNTHETIC" in shown
    assert "$ cxr_compress --model=tiny_chexnet --dataset=phantom" in shown
    assert "tiny_chexnet_m50_w50_int8" in shown
    assert "lost in all" in shown
    assert (tmp_path / "demo" / "report.json").is_file()


def test_plot_report_draws_a_finished_run(tmp_path):
    pytest.importorskip("matplotlib")
    interval = {"value": 0.9, "low": 0.8, "high": 0.95}
    rows = [
        {
            "name": name,
            "tflite_bytes": 1000,
            "latency": {"p50_ms": 1.0},
            "evaluation": {"mean_auroc": interval},
        }
        for name in ("x_fp32", "x_int8", "x_m50_int8")
    ]
    dataset = {"name": "phantom", "synthetic": True, "splits": {"test": {"images": 10}}}
    report = {"schema_version": 2, "dataset": dataset, "rows": rows, "facts": {"recipe": Recipe().to_dict()}}
    (tmp_path / "report.json").write_text(json.dumps(report))
    command = [sys.executable, str(EXPERIMENTS / "plot_report.py"), f"--report={tmp_path / 'report.json'}"]
    subprocess.run([*command, f"--output={tmp_path / 'plot.png'}"], check=True, capture_output=True)
    assert (tmp_path / "plot.png").read_bytes().startswith(b"\x89PNG")


def test_bench_layers_smoke_times_plans_and_profiles_them(tmp_path):
    run("bench_layers.py", f"--run_dir={tmp_path}")
    with (tmp_path / "bench_layers.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["removed"] for row in rows] == ["filters", "layers"]
    assert all(float(row["macs"]) <= 0.25 for row in rows)
    assert int(rows[0]["groups_gone"]) == 0 < int(rows[1]["groups_gone"])
    with (tmp_path / "bench_layers_profile.csv").open() as file:
        profiled = list(csv.DictReader(file))
    for removed in ("filters", "layers"):
        shares = [float(row["share_of_time"]) for row in profiled if row["removed"] == removed]
        assert abs(sum(shares) - 1) < 0.05


def test_zoo_smoke_equals_its_oracle_and_the_control_does_not():
    result = json.loads(run("zoo.py"))
    assert result["macs_fraction"] <= 0.5
    assert result["oracle_error"] < 1e-4
    assert result["control_error"] > 1e-2


def test_export_models_smoke_takes_a_softmax_model_through_every_quant_type():
    rows = [json.loads(line) for line in run("export_models.py").splitlines()]
    assert [row["quant_type"] for row in rows] == ["none", "fp16", "dynamic", "int8", "int8_float_io", "int16x8"]
    assert {row["float_islands"] for row in rows} == {0}
    assert rows[0]["snr_db"] > 80  # the float file is the model
    sizes = {row["quant_type"]: row["bytes"] for row in rows}
    assert sizes["none"] > 1.9 * sizes["fp16"] > 2.5 * sizes["int8"]


def test_criteria_smoke_leaves_a_row_per_criterion_and_the_table_shows_them(tmp_path):
    pytest.importorskip("matplotlib")
    run("criteria.py", "--criteria=random,l1,lasso", f"--run_dir={tmp_path}")
    again = run("criteria.py", "--criteria=random,l1,lasso", f"--run_dir={tmp_path}")
    assert "random" not in again  # kept, not measured twice
    script, table = EXPERIMENTS / "criteria_table.py", tmp_path / "criteria.csv"
    command = [sys.executable, str(script), f"--run_dir={tmp_path}", f"--output={table}"]
    subprocess.run(command, check=True, capture_output=True)
    rows = list(csv.DictReader(table.read_text().splitlines()))
    assert {row["criterion"] for row in rows} == {"random", "l1", "lasso"}
    assert all(float(row["reconstructed_recalibrated"]) <= 1 and float(row["macs_fraction"]) <= 0.5 for row in rows)
    compared = json.loads((tmp_path / "criteria.json").read_text())["0.5"]["lasso_minus_l1"]["raw"]
    assert compared["low"] <= compared["value"] <= compared["high"]
    assert (tmp_path / "criteria.png").read_bytes().startswith(b"\x89PNG")


def test_recovery_smoke_compares_each_training_with_its_start(tmp_path):
    arguments = ("--images=40", "--recoveries=before,all+3e-5", f"--run_dir={tmp_path}")
    run("recovery.py", *arguments)
    rows = {row["recovery"]: row for row in csv.DictReader((tmp_path / "recovery.csv").read_text().splitlines())}
    assert list(rows) == ["start", "before", "all+3e-5"]
    assert (rows["before"]["batch_norm"], rows["all+3e-5"]["batch_norm"]) == ("train", "hold")
    start, before = (float(rows[name]["rms_last"]) for name in ("start", "before"))
    assert before > start > 0
    assert float(rows["start"]["minus_start"]) == 0
    assert float(rows["before"]["low"]) <= float(rows["before"]["minus_start"]) <= float(rows["before"]["high"])
    assert " s)" not in run("recovery.py", *arguments), "rows are kept, not measured twice"


def test_ptq_densenet_smoke_folds_half_of_the_norms_operators_away(tmp_path):
    result = json.loads(run("ptq_densenet.py", f"--results_dir={tmp_path}"))
    rows = result["rows"]
    assert rows[0]["ranges"] == "float"
    assert rows[0]["logit_rmse"] == 0
    plain, shift = rows[1:3]
    assert [row["fold"] for row in (plain, shift)] == ["none", "shift"]
    assert plain["operators"] - shift["operators"] > 10
    assert len({row["logit_rmse"] for row in rows}) > 5  # each row is a file of its own
    assert all(row["logit_rmse"] > 0 and (row["p50_ms"] or 0) > 0 for row in (plain, shift))
    table = list(csv.DictReader((tmp_path / "ptq_densenet.csv").read_text().splitlines()))
    assert [float(row["snr_db"]) for row in table[1:]] == [row["snr_db"] for row in rows[1:]]
    assert json.loads((tmp_path / "ptq_densenet.json").read_text()) == result


def test_bench_data_smoke_measures_input_beside_training():
    result = json.loads(run("bench_data.py"))
    assert result["networks"]["tiny_chexnet"]["input_of_one_core_over_training"] > 0


def test_baselines_smoke_keeps_weights_that_score_what_the_card_says(tmp_path):
    shown = run("baselines.py", f"--output_dir={tmp_path / 'runs'}", f"--results_dir={tmp_path / 'kept'}")
    kept = tmp_path / "kept" / "smoke"
    assert sorted(path.name for path in kept.iterdir()) == [
        "evaluation_dev.json",
        "evaluation_test.json",
        "model_card.md",
        "training.json",
        "weights_fp16.npz",
    ]
    test = json.loads((kept / "evaluation_test.json").read_text())
    assert f"{test['evaluation']['mean_auroc']['value']:.3f}" in (kept / "model_card.md").read_text()
    assert "$ cxr_train --dataset=phantom" in shown
    with np.load(kept / "weights_fp16.npz", allow_pickle=False) as weights:
        assert {weights[name].dtype.name for name in weights.files if "|" in name} == {"float16"}


def test_baselines_nih_mini_table_keeps_patients_apart_and_softens_training_labels_alone(cxr_data, tmp_path):
    code = (
        f"import sys; sys.path.insert(0, {str(EXPERIMENTS)!r}); import baselines; from pathlib import Path;"
        "sys.stdout.write(baselines.nih_mini_table(Path(sys.argv[1])))"
    )
    command = [sys.executable, "-c", code, str(cxr_data / "nih_mini")]
    text = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    rows = list(csv.DictReader(text.splitlines()))
    parts = {name: [row for row in rows if row["split"] == name] for name in ("train", "dev", "test")}
    patients = {name: {row["patient_id"] for row in found} for name, found in parts.items()}
    assert not patients["train"] & patients["dev"]
    assert not (patients["train"] | patients["dev"]) & patients["test"]
    assert len(rows) == 1704  # 1,707 without the three that are marked as inverted or rotated
    soft = {name: sum(row["Effusion"] not in ("0", "1") for row in found) for name, found in parts.items()}
    assert soft["dev"] == soft["test"] == 0
    assert 300 < soft["train"] <= 844


def test_few_images_smoke_gives_a_line_for_every_kind_and_way():
    shown = run("few_images.py", "--ways=varied,norms")
    rows = list(csv.DictReader(shown[shown.index("kind,way") :].splitlines()))
    assert [(row["kind"], row["way"]) for row in rows] == [
        ("mixed", "norms"),
        ("mixed", "varied"),
        ("normal", "norms"),
        ("normal", "varied"),
    ]
    assert all(float(row["logit_distance"]) > 0 for row in rows)


def test_few_images_plot_draws_a_committed_table(tmp_path):
    shutil.copy(RESULTS / "few_images_kermany.csv", tmp_path)
    script, table = EXPERIMENTS / "few_images_plot.py", tmp_path / "few_images_kermany.csv"
    subprocess.run([sys.executable, str(script), f"--table={table}"], cwd=REPOSITORY, check=True)
    assert (tmp_path / "few_images_kermany.png").read_bytes().startswith(b"\x89PNG")


def test_ladder_smoke_judges_the_whole_network_and_a_pruned_one():
    shown = run("ladder.py", "--rungs=m50", "--bootstrap_samples=50")
    rows = list(csv.DictReader(shown[shown.index("test,rung") :].splitlines()))
    assert [(row["test"], row["rung"]) for row in rows] == [("official", "int8"), ("official", "m50")]
    assert int(rows[1]["macs"]) <= 0.5 * int(rows[0]["macs"])
    # Random weights: nothing can be shown of any finding, and nothing is.
    assert {row["not enough images"] for row in rows} == {"5"}


def test_parent_smoke_sets_what_is_inherited_beside_a_smaller_input():
    shown = run("parent.py", "--rows=inherited,smaller", "--target_macs=0.5", "--epochs=1")
    rows = {row["row"]: row for row in csv.DictReader(shown[shown.index("row,target") :].splitlines())}
    assert set(rows) == {"parent", "inherited", "smaller"}
    assert int(rows["inherited"]["macs"]) <= 0.5 * int(rows["parent"]["macs"])
    assert rows["smaller"]["inherited_ahead"]


def test_comparison_statistics_smoke_passes_an_identical_model_and_agrees_with_delong():
    shown = run("comparison_statistics.py", "--parts=identical,delong")
    first, second = (json.loads(part[part.index("{") :]) for part in shown.split("delong (", 1))
    assert first == {"not_inferior_of_14": 14, "flips": 0}
    # A spread of 1,000 resamplings is sure to 2.2 %; two formulas for few positives differ by some more.
    assert all(0.85 < case["mean"] < 1.15 for case in second.values())
