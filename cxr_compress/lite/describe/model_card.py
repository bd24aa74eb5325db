"""The model card inside a file, as Markdown: what its own metadata says, for people.

It cannot say what the file scores: a file is scored after it is written. `report.card` writes that one.
"""

from __future__ import annotations

from cxr_compress.device.modelinfo import ModelInfo
from cxr_compress.device.spec import PreprocessSpec

_TEMPLATE = """\
# {name}

**{intended_use}** {synthetic}Thresholds and probabilities hold for the data they were fitted on; choose and check both
on films of your own before anyone relies on them.

| | |
|---|---|
| input | {input} |
| output | {output} |
| quantisation | {quant_type} |
| trained on | {training_data} |
| data | {attribution} |
| slope and offset | {calibration_source} |
| thresholds | {threshold_source} |
| weights and operators | canonical sha256 {canonical_hash} |
| made from | {parents} |

{findings}
"""
_SIGMOIDS = "one logit per finding; probability = 1 / (1 + exp(-(slope * logit + offset)))"
_SOFTMAX = (
    "one logit per class; the classes exclude one another: probabilities = softmax of slope * logit + offset over all "
    "of them, and the likeliest class is predicted"
)


def render_file_card(info: ModelInfo) -> str:
    """The card of one file, from what it says about itself."""
    return _TEMPLATE.format(
        name=info.model_name,
        intended_use=info.intended_use,
        synthetic="Trained on SYNTHETIC images: its findings say nothing about patients. " if info.synthetic else "",
        input=_input(info.preprocess),
        output=_SOFTMAX if info.exclusive else _SIGMOIDS,
        quant_type=info.quant_type,
        training_data=info.training_data or "not stated",
        attribution=info.attribution or "no attribution stated",
        calibration_source=info.calibration_source,
        threshold_source=info.threshold_source,
        canonical_hash=info.canonical_hash or "not computed",
        parents=", ".join(f"{name} (sha256 {digest})" for name, digest in info.parents.items()) or "not stated",
        findings=_findings(info),
    )


def _findings(info: ModelInfo) -> str:
    """One row a label; exclusive classes have no thresholds."""
    rows = zip(info.labels, info.logit_slope, info.logit_offset, info.thresholds, strict=True)
    if info.exclusive:
        lines = ["| class | slope | offset |", "|---|---|---|"]
        return "\n".join([*lines, *(f"| {label} | {a:.4g} | {b:.4g} |" for label, a, b, _ in rows)])
    lines = ["| finding | slope | offset | positive from |", "|---|---|---|---|"]
    return "\n".join([*lines, *(f"| {label} | {a:.4g} | {b:.4g} | {t:.4g} |" for label, a, b, t in rows)])


def _input(spec: PreprocessSpec) -> str:
    kind = "gray film" if spec.color == "gray" else f"colour image ({spec.order})"
    size = f"{spec.height} x {spec.width}, area averaging, aspect ratio not kept"
    if spec.input == "uint8":
        return f"one {kind}, {size}; uint8 pixels, normalised inside"
    mean, std = (" ".join(f"{value:.4g}" for value in values) for values in (spec.mean, spec.std))
    return f"one {kind}, {size}; (pixel / 255 - {mean}) / {std}"
