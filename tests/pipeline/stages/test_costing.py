"""Costs measured from a model: one conversion, real probes, and thinner models priced by them."""

from __future__ import annotations

import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from cxr_compress.device.benchmark import prepare_call, time_together
from cxr_compress.device.cost_table import CostTable
from cxr_compress.device.layer_times import measure_layers
from cxr_compress.device.probe_pack import read_pack
from cxr_compress.errors import CompressionError, ModelFileError
from cxr_compress.lite import convert
from cxr_compress.models import tiny_chexnet
from cxr_compress.pipeline.stages.price import make_probe_pack, measure_costs, read_latency_table
from cxr_compress.structured import Budget, analyze_channels, remove_channels, score_channels, select_channels
from tests import nets


@pytest.fixture(scope="module")
def model():
    return nets.dense_block()


@pytest.fixture(scope="module")
def images(model):
    return nets.batch(model, 16)


@pytest.fixture(scope="module")
def table(model, images):
    return measure_costs(model, [images], "int8", want_latency=True, metadata_bytes=3000, calibration_steps=16)


def test_measure_costs_prices_the_original_file_exactly_and_its_latency(model, images, table):
    real = len(convert(model, "int8", calibration=[images], calibration_steps=16).content)
    priced = analyze_channels(model).priced(table).baseline
    assert priced.tflite_bytes == real + 3000
    assert priced.latency_ms > 0
    assert (table.layer_times.quant_type, table.layer_times.num_threads) == ("int8", 1)


def test_measure_costs_table_carries_budgets_on_both(model, table):
    analysis = analyze_channels(model)
    whole = analysis.priced(table).baseline
    budget = Budget(tflite_bytes=whole.tflite_bytes - 300, latency_ms=1.0)
    plan = select_channels(analysis, score_channels(model, analysis), budget, round_to=1, cost_table=table)
    assert plan.after.tflite_bytes <= whole.tflite_bytes - 300
    assert plan.kept


def test_probe_pack_timed_elsewhere_comes_back_as_latency_table(model, images, tmp_path: Path):
    """What a user does: a pack made here, a table made on the device, both parts joined here."""
    made = make_probe_pack(model, tmp_path / "pack.zip", "none")
    assert read_pack(tmp_path / "pack.zip") == made
    path = tmp_path / "table.json"
    path.write_text(measure_layers(tmp_path / "pack.zip", runs=3, warmup=1).to_json(), encoding="utf-8")
    given = read_latency_table(path)
    joined = measure_costs(model, [images], "none", want_latency=True, latency_table=given, calibration_steps=16)
    assert joined.layer_times == given.layer_times
    assert joined.file_bytes is not None
    with pytest.raises(CompressionError, match="measured for quant type 'none', the model is to be 'int8'"):
        measure_costs(model, [images], "int8", latency_table=given)


def test_latency_predicted_for_a_pruned_model_is_that_of_its_converted_file(tmp_path: Path):
    """Ratios to the original model, in processor time, which other programs do not change.

    A table is to be within 15 % on a quiet machine; a third is allowed here for shared caches and changing clock rates.
    The control, the prediction for another plan, is off by half.
    """
    model = nets.enliven(tiny_chexnet())
    analysis = analyze_channels(model)
    pack = make_probe_pack(model, tmp_path / "pack.zip", "none")
    table = measure_layers(pack, runs=30)
    scores = score_channels(model, analysis)
    thick, pruned = (
        select_channels(analysis, scores, Budget(macs=share), scope="local", cost_table=table) for share in (0.8, 0.2)
    )
    contents = {"original": pack.model, "pruned": convert(remove_channels(model, pruned), "none").content}
    calls = {name: prepare_call(content, 1, "auto")[0] for name, content in contents.items()}
    times = time_together(calls, runs=60, warmup=5, clock=time.thread_time)
    measured = np.median(times["pruned"]) / np.median(times["original"])
    predicted, other = (plan.after.latency_ms / plan.before.latency_ms for plan in (pruned, thick))
    assert predicted == pytest.approx(measured, rel=1 / 3)
    assert other != pytest.approx(measured, rel=1 / 2)


def test_measure_costs_wants_nothing_converts_nothing(model):
    assert measure_costs(model, want_bytes=False) == CostTable()


def test_latency_table_without_layer_times_or_unreadable_is_refused(model, table, tmp_path: Path):
    bytes_only = replace(table, layer_times=None)
    with pytest.raises(CompressionError, match="expected layer times in the latency table, it has none"):
        measure_costs(model, want_bytes=False, latency_table=bytes_only)
    path = tmp_path / "table.json"
    path.write_text(bytes_only.to_json(), encoding="utf-8")
    with pytest.raises(CompressionError, match=r"table\.json: expected layer times, the table has none"):
        read_latency_table(path)
    with pytest.raises(ModelFileError, match=r"gone\.json: expected a latency table \(JSON\), could not read it"):
        read_latency_table(tmp_path / "gone.json")
    path.write_text("{", encoding="utf-8")
    with pytest.raises(CompressionError, match=r"table\.json: expected a cost table \(JSON\), could not read it"):
        read_latency_table(path)


def test_measure_costs_keeps_the_model_as_it_is(model, images):
    before = [weight.copy() for weight in model.get_weights()]
    measure_costs(model, [images], calibration_steps=16)
    for weight, same in zip(model.get_weights(), before, strict=True):
        np.testing.assert_array_equal(weight, same)
