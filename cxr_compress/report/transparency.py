"""The seventeen fields of a model card that people who decide ask for: filled from a run, or said to be missing.

The fields follow the headings of the Applied Model Card of the Coalition for Health AI (2024), as far as they can be
asked of a classifier. What only who deploys a model can say is missing, and nothing is guessed in its place.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from cxr_compress.device.card import card_facts
from cxr_compress.device.modelfile import ModelFile
from cxr_compress.evaluate import NOT_INFERIOR
from cxr_compress.report.cells import inside, interval, millions

MISSING = ""


def transparency_fields(report: Mapping[str, Any], model: ModelFile) -> dict[str, str]:
    """What is known of a compressed file under each field; `MISSING` where a run cannot know.

    Args:
        report: what `read_report` gave.
        model: the compressed file, the last row of the report.
    """
    info, row, first = model.info, report["rows"][-1], report["rows"][0]
    facts, splits = card_facts(info), report["dataset"]["splits"]
    counted = {name: f"{one['images']:,} images of {one['patients']:,} patients" for name, one in splits.items()}
    measured = inside(row, "evaluation", "mean_auroc")
    changes = inside(row, "comparison", "findings") or {}
    kept = sum(change["verdict"] == NOT_INFERIOR for change in changes.values())
    groups = inside(row, "comparison", "groups") or {}
    return {
        "Name and version": f"{info.model_name}, sha256 {model.sha256}",
        "Developer and contact": MISSING,
        "Release stage and date": f"{info.intended_use} No release date is recorded." if info.intended_use else MISSING,
        "Intended use": info.intended_use,
        "Intended users and workflow": MISSING,
        "Patients it is meant for": MISSING,
        "Uses it is not for": "Deciding about a patient; images of another kind than those it was trained on.",
        "Input": facts["input"],
        "Output": facts["output"],
        "Model type and what it was made from": (
            f"{millions(first.get('macs'))} multiplications before compression, {millions(row.get('macs'))} after, "
            f"{info.quant_type}; made from {facts['made from'] or 'a network trained in this run'}"
        ),
        "Training data": f"{info.training_data}: {counted.get('train', 'size not recorded')}; {info.attribution}",
        "Test data": f"{report['dataset']['name']}: {counted['test']}" if "test" in counted else MISSING,
        "Performance": f"mean AUROC {interval(measured)} on test" if measured else MISSING,
        "Performance beside the original model": (
            f"not inferior for {kept} of {len(changes)} findings (margin {next(iter(changes.values()))['margin']:g})"
            if changes
            else MISSING
        ),
        "Performance in groups of patients": f"compared by {', '.join(groups)}" if groups else MISSING,
        "Known risks and limits": "What was not tested, and the limits, are listed on this page.",
        "Maintenance and monitoring": MISSING,
    }
