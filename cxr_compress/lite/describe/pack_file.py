"""From a converted flatbuffer to the file that ships, with all that it says about itself."""

from __future__ import annotations

from dataclasses import replace

from cxr_compress.device.card import render_file_card
from cxr_compress.device.modelfile import MAX_METADATA_BYTES, pack_model
from cxr_compress.device.modelinfo import ModelInfo
from cxr_compress.device.verify import record
from cxr_compress.errors import ModelFileError
from cxr_compress.lite.describe.metadata import metadata_flatbuffer, with_metadata
from cxr_compress.lite.graph.canonical import hash_model
from cxr_compress.lite.graph.flatbuffer import Graph, graphs_of, to_object

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
