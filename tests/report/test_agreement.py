"""Texts of a run without labels: agreement, plainly worded, and a reason where a number is not there."""

from __future__ import annotations

import pytest

from cxr_compress.evaluate.agreement import BROKEN, HOLDS, TOO_FEW
from cxr_compress.report.agreement import render_agreement_gate, render_agreement_table, render_finding_agreements

NOTHING = {"value": None, "low": None, "high": None}


def spread(value: float, half: float = 0.01) -> dict[str, float]:
    return {"value": value, "low": value - half, "high": value + half}


def row(name: str, **changes) -> dict:
    finding = {
        "positives": 12,
        **{what: spread(0.9) for what in ("spearman", "kappa", "flips", "logit_distance", "cam")},
        "reasons": {},
        **changes,
    }
    whole = {"logit_distance": spread(0.143), "flips": spread(0.02), "findings": {"Mass": finding}}
    return {"name": name, "tflite_bytes": 1234, "agreement": whole}


ROWS = [{"name": "fp32", "agreement": None}, row("int8"), row("small", kappa=NOTHING, reasons={"kappa": "one class"})]


def test_table_has_a_line_a_file_and_nothing_in_the_first():
    first, second, third = render_agreement_table(ROWS).splitlines()[2:]
    assert first.split() == ["fp32", *"??????"]
    assert "0.143 [0.133, 0.153]" in second
    assert "0.020 [0.010, 0.030]" in third


def test_findings_show_a_reason_and_never_a_number_for_what_is_not_defined():
    lines = render_finding_agreements(ROWS, ["Mass"]).splitlines()
    assert lines[2].split()[:3] == ["Mass", "12", "int8"]
    assert " ? " in lines[3]
    assert " ? " not in lines[2], "control"
    assert lines[4] == "  no kappa of small: one class."
    more = render_finding_agreements(ROWS, ["Mass", "Nodule"]).splitlines()
    assert more[-1] == "  no kappa of small for Mass: one class."


@pytest.mark.parametrize(
    ("verdict", "said", "more"),
    [
        (HOLDS, "Gate holds: decisions changed 0.020 [0.010, 0.030] (at most 0.05); logits apart", False),
        (BROKEN, "Gate BROKEN: decisions changed", False),
        (TOO_FEW, "Gate undecided, not enough images to tell: decisions changed", True),
    ],
)
def test_gate_says_which_of_three_and_how_many_images_would_tell(verdict, said, more):
    gate = {
        "verdict": verdict,
        "flips": {**spread(0.02), "max": 0.05},
        "logit_distance": {**spread(0.1), "max": 0.5},
        "patients": 30,
        "patients_needed": 73,
        "lacking": [],
    }
    text = render_agreement_gate(gate)
    assert text.startswith(said)
    assert ("30 patients are held out; 73 could show it" in text) == more
    assert ("What the images lack" in render_agreement_gate({**gate, "lacking": ["positives"]})) == more
