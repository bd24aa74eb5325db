"""Model cards in Markdown: one form for the card inside a model file and for those beside files and weights."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from cxr_compress.device.modelinfo import NOT_STATED, ModelInfo
from cxr_compress.device.spec import PreprocessSpec

_SIGMOIDS = "one logit per finding; probability = 1 / (1 + exp(-(slope * logit + offset)))"
_SOFTMAX = (
    "one logit per class; the classes exclude one another: probabilities = softmax of slope * logit + offset over all "
    "of them, and the likeliest class is predicted"
)


def render_card(name: str, notice: str, facts: Mapping[str, str], sections: Iterable[str]) -> str:
    """The card of a model.

    Args:
        name: its title.
        notice: what nobody may overlook, below the title.
        facts: rows of the first table; what has no text is "not stated".
        sections: Markdown that follows, an empty line between two.
    """
    table = render_table(["", ""], [[fact, text or NOT_STATED] for fact, text in facts.items()])
    return "\n\n".join([f"# {name}", notice, table, *sections]) + "\n"


def render_file_card(info: ModelInfo) -> str:
    """The card that a model file carries, from what the file says about itself."""
    return render_card(info.model_name, card_notice(info), card_facts(info), [render_calibration(info)])


def card_notice(info: ModelInfo) -> str:
    """What nobody may overlook about a model file."""
    synthetic = "Trained on SYNTHETIC images: its findings say nothing about patients. " if info.synthetic else ""
    return (
        f"**{info.intended_use}** {synthetic}Never let it decide about a patient. Probabilities"
        f"{'' if info.exclusive else ' and thresholds'} hold for the data that they were fitted on: check them on "
        "images of your own."
    )


def card_facts(info: ModelInfo) -> dict[str, str]:
    """What a model file says about itself, by name."""
    return {
        "input": _describe_input(info.preprocess),
        "output": _SOFTMAX if info.exclusive else _SIGMOIDS,
        "quantization": info.quant_type,
        "trained on": info.training_data,
        "data": info.attribution,
        "slope and offset": info.calibration_source,
        "thresholds": info.threshold_source,
        "weights and operators": f"canonical sha256 {info.canonical_hash}" if info.canonical_hash else "",
        "made from": ", ".join(f"{name} (sha256 {digest})" for name, digest in info.parents.items()),
    }


def render_calibration(info: ModelInfo) -> str:
    """A table of labels, and how logits become probabilities and decisions; exclusive classes have no thresholds."""
    titles = ["class" if info.exclusive else "finding", "slope", "offset", "positive from"]
    columns = zip(info.labels, info.logit_slope, info.logit_offset, info.thresholds, strict=True)
    rows = [[label, *(f"{number:.4g}" for number in numbers)] for label, *numbers in columns]
    shown = len(titles) - info.exclusive
    return render_table(titles[:shown], [row[:shown] for row in rows])


def render_table(titles: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """A Markdown table."""
    head, *body = ("| " + " | ".join(map(str, cells)) + " |" for cells in (titles, *rows))
    return "\n".join([head, f"|{'---|' * len(titles)}", *body])


def _describe_input(spec: PreprocessSpec) -> str:
    kind = "gray image" if spec.color == "gray" else f"color image ({spec.order})"
    size = f"{spec.height} x {spec.width} pixels, area averaging, aspect ratio not kept"
    if spec.input == "uint8":
        return f"one {kind}, {size}; uint8 pixels, normalized inside"
    mean, std = (" ".join(f"{value:.4g}" for value in values) for values in (spec.mean, spec.std))
    return f"one {kind}, {size}; (pixel / 255 - {mean}) / {std}"
