"""Budgets on bytes and milliseconds through the whole run: measured once, held, and reported beside what came out."""

from __future__ import annotations

import pytest

from cxr_compress.data.readers.phantom import PHANTOM_FINDINGS, write_phantom
from cxr_compress.device.layer_times import measure_layers
from cxr_compress.device.probe_pack import read_pack
from cxr_compress.errors import BudgetError, CompressionError
from cxr_compress.models import tiny_chexnet
from cxr_compress.models.files import save_model
from cxr_compress.pipeline import run_recipe, write_probe_pack
from cxr_compress.recipe import make_recipe
from cxr_compress.report import render_report
from cxr_compress.structured import ChannelPlan
from tests.nets import enliven

RECIPE = make_recipe(
    "tiny_chexnet",
    {
        "dataset": "phantom",
        "force": True,  # hardly trained, it is no better than chance, which a run refuses
        **{"match": "position", "preset": "imagenet_torch"},  # of a model whose file says nothing
        "input_size": 32,
        "target_macs": None,
        "recovery_epochs": 0,
        "weight_sparsity": 0.0,
        "calibration_images": 16,
        "reconstruction_images": 16,
        "vary_images": False,
        "bootstrap_samples": 20,
        "qat": "never",  # nothing here is trained: int8 would be found wanting, and trained for
    },
)


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """What every run here starts from."""
    images = tmp_path_factory.mktemp("phantom")
    write_phantom(images, n_train=120, n_test=40, size=64)
    original = tmp_path_factory.mktemp("original") / "small.keras"
    save_model(enliven(tiny_chexnet(len(PHANTOM_FINDINGS), (32, 32, 3))), original)
    return {"data_dir": images, "keras_model_file": original}


@pytest.fixture(scope="module")
def latency_table(folders, tmp_path_factory):
    """What a user brings back from a device: layer times of the original model, here of float files."""
    folder = tmp_path_factory.mktemp("probes")
    write_probe_pack(RECIPE.with_values(quant_type="none"), folder / "probes.zip", output_dir=folder / "run", **folders)
    return measure_layers(read_pack(folder / "probes.zip"), runs=5)


def test_run_holds_a_budget_of_bytes_within_2_percent_and_keeps_what_it_measured(folders, tmp_path):
    recipe, log = RECIPE.with_values(target_bytes=0.6), []
    report = run_recipe(recipe, output_dir=tmp_path, log=log.append, **folders)
    budget = report["facts"]["budgets"]["tflite_bytes"]
    assert budget["measured"] == (tmp_path / "tiny_chexnet_b60_int8.tflite").stat().st_size
    assert budget["predicted"] <= budget["limit"] < 0.61 * report["rows"][1]["tflite_bytes"]
    assert budget["measured"] == pytest.approx(budget["predicted"], rel=0.02)
    # Control: the original file is nowhere near.
    assert report["rows"][1]["tflite_bytes"] > 1.3 * budget["predicted"]
    assert f"came out {budget['measured']:,}" in render_report(report)
    assert log.index("export_original: started") < log.index("price: started") < log.index("select: started")
    again: list[str] = []
    assert run_recipe(recipe, output_dir=tmp_path, log=again.append, **folders) == report
    assert "price: done before, kept" in again


def test_run_combines_a_latency_of_a_device_with_macs(folders, latency_table, tmp_path):
    recipe = RECIPE.with_values(quant_type="none", target_macs=0.9, target_latency_ms=0.7)
    report = run_recipe(recipe, output_dir=tmp_path, latency_table=latency_table, **folders)
    budgets = report["facts"]["budgets"]
    assert set(budgets) == {"macs", "latency_ms"}
    assert all(budget["predicted"] <= budget["limit"] for budget in budgets.values())
    assert budgets["latency_ms"]["measured"] > 0
    plan = ChannelPlan.from_json((tmp_path / "plan.json").read_text())
    assert plan.after.latency_ms <= 0.7 * plan.before.latency_ms
    assert (tmp_path / "tiny_chexnet_m90_t70_none.tflite").is_file()


def test_run_without_a_table_measures_layer_times_here(folders, tmp_path):
    report = run_recipe(RECIPE.with_values(target_latency_ms=0.8), output_dir=tmp_path, **folders)
    assert report["facts"]["budgets"]["latency_ms"]["predicted"] > 0
    assert (tmp_path / "costs.json").is_file()


def test_run_with_a_table_of_another_quant_type_is_one_line(folders, latency_table, tmp_path):
    recipe = RECIPE.with_values(target_latency_ms=0.7)
    with pytest.raises(CompressionError, match="was measured for quant type 'none', the model is to be 'int8'"):
        run_recipe(recipe, output_dir=tmp_path, latency_table=latency_table, **folders)


def test_run_with_bytes_that_cannot_be_reached_says_the_minimum(folders, tmp_path):
    with pytest.raises(BudgetError, match=r"at most 5,000 tflite_bytes, reachable are [\d,]+ "):
        run_recipe(RECIPE.with_values(target_bytes=5000), output_dir=tmp_path, **folders)
