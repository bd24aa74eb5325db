"""From a converted flatbuffer to the file that ships, with all that it says about itself."""

from __future__ import annotations

from dataclasses import replace

from cxr_compress.device.modelfile import MAX_METADATA_BYTES, pack_model
from cxr_compress.device.modelinfo import ModelInfo
from cxr_compress.device.spec import PreprocessSpec
from cxr_compress.device.verify import record
from cxr_compress.errors import ModelFileError
from cxr_compress.lite.describe.metadata import metadata_flatbuffer, with_metadata
from cxr_compress.lite.graph.canonical import hash_model
from cxr_compress.lite.graph.flatbuffer import Graph, graphs_of, to_object

_TEMPLATE = """\
# {name}

**{intended_use}** {synthetic}Thresholds and probabilities hold for the data they were fitted on; choose and check both
on images of your own before anyone relies on them.

| | |
|---|---|
| input | {input} |
| output | {output} |
| quantization | {quant_type} |
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
    kind = "gray image" if spec.color == "gray" else f"color image ({spec.order})"
    size = f"{spec.height} x {spec.width}, area averaging, aspect ratio not kept"
    if spec.input == "uint8":
        return f"one {kind}, {size}; uint8 pixels, normalized inside"
    mean, std = (" ".join(f"{value:.4g}" for value in values) for values in (spec.mean, spec.std))
    return f"one {kind}, {size}; (pixel / 255 - {mean}) / {std}"


_FROM_CODES = ("DEQUANTIZE",)


def pack_file(content: bytes, info: ModelInfo) -> bytes:
    """The whole file: the flatbuffer with standard metadata, and behind it the archive of `device.pack_model`.

    Adds to `info` what can be known only now: the canonical hash, what the file answers to reference images (four
    inferences), and a model card where it has none. The same flatbuffer, info and runtime give the same bytes.

    Args:
        content: the plain flatbuffer, `LiteModel.content`, or `ModelFile.content` of a file to be packed anew.
        info: what the file says about itself.

    Raises:
        ModelFileError: the flatbuffer contradicts `info`, or all metadata together exceeds 64 kB.
        RuntimeUnavailableError: no TFLite runtime here can run it.
    """
    model = to_object(content)
    graph = graphs_of(model)[0]
    known = replace(info, canonical_hash=hash_model(model), reference=None)
    known = replace(known, reference=record(content, known, step=_hidden_step(graph)))
    if not known.model_card:
        known = replace(known, model_card=render_file_card(known))
    standard = metadata_flatbuffer(graph, known)
    described = with_metadata(model, standard)
    packed = pack_model(described, known)
    spent = len(packed) - len(described) + len(standard)
    if spent > MAX_METADATA_BYTES:
        raise ModelFileError(
            f"the metadata takes {spent} bytes, at most {MAX_METADATA_BYTES} are allowed; shorten the recipe or the "
            "model card"
        )
    return packed


def _hidden_step(graph: Graph) -> float | None:
    """The value of one code behind float logits, where the last operator only turns codes into floats."""
    producers = graph.producers()
    for index in graph.outputs:
        tensor, maker = graph.tensors[index], producers.get(index)
        if tensor.is_float and len(tensor.shape) == 2 and maker is not None and maker.kind in _FROM_CODES:  # noqa: PLR2004
            return graph.tensors[maker.inputs[0]].scale[0]
    return None
