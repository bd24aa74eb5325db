"""The lines below the table: how int8 was reached, the verdict, and the forecast."""

from __future__ import annotations

import pytest

from cxr_compress.report import render_forecast
from cxr_compress.report.report import _quantized, render_gate


@pytest.mark.parametrize(
    ("facts", "line"),
    [
        ({}, ""),
        ({"used": "after training", "broken": []}, "Int8 after training: it keeps what it must on dev."),
        ({"used": "after training", "broken": ["AUROC drop 0.02 above 0.005"]}, "Int8 after training: AUROC drop 0.02"),
        ({"used": "in training", "broken": ["AUROC drop 0.02 above 0.005"]}, "Int8 in training: after training, AUROC"),
        ({"used": "in training", "broken": []}, "Int8 in training: it was asked for."),
        (
            {"used": "after training", "broken": ["loss"], "qat_not_taken": "its loss on dev is no lower"},
            "Int8 after training, though loss: of int8 in training, its loss on dev is no lower.",
        ),
    ],
)
def test_report_says_how_int8_was_reached(facts, line):
    assert _quantized(facts).startswith(line)
    assert bool(_quantized(facts)) == bool(line)


def test_report_gives_the_verdict_with_its_bounds_and_power():
    gate = {"loss": 0.012, "upper_bound": 0.02, "max_loss": 0.005, "margin": 0.01, "power": 0.9, "holds": False}
    assert render_gate(gate).startswith(
        "Gate BROKEN: AUROC lost 0.0120 (at most 0.005), upper bound 0.0200 (below 0.01); of"
    )
    assert "90% pass" in render_gate(gate)
    assert render_gate({**gate, "holds": True}).startswith("Gate holds")
    assert "AUROC lost ?" in render_gate({**gate, "loss": None, "power": None}), "what was not measured is not 0"
    assert render_gate(None) == ""


def test_report_gives_both_verdicts_where_classes_exclude_one_another():
    gate = {"loss": 0.001, "upper_bound": 0.004, "max_loss": 0.005, "margin": 0.01, "power": 0.9, "holds": False}
    other = {**gate, "loss": -0.0, "upper_bound": 0.02}
    parts = {"small_loss": True, "non_inferior": True, "balanced_accuracy": other}
    lines = render_gate({**gate, **parts}).splitlines()
    assert lines[0].startswith("Gate BROKEN: mean one-vs-rest AUROC holds, lost 0.0010 (at most 0.005)")
    assert lines[1].startswith(
        "  Both must hold; balanced accuracy BROKEN: lost 0.0000 (at most 0.005), upper bound 0."
    )


def test_forecast_leaves_out_costs_that_nobody_asked_for_and_says_what_is_done():
    costs = {"params": 1000, "macs": 2000, "tflite_bytes": None}
    forecast = {
        "before": costs,
        "after": {"params": 250, "macs": 1000, "tflite_bytes": None},
        "certain": True,
        "stages": {"base": 0.0, "recover": 600.0},
        "seconds": 600,
    }
    text = render_forecast(forecast)
    assert "25.0%" in text
    assert "tflite_bytes" not in text
    assert "done" in text
    assert "About 10 minutes" in text
    assert "random weights" not in text
    assert "random weights" in render_forecast({**forecast, "certain": False})
