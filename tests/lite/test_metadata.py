"""The standard metadata inside a file, and what packing adds; other readers of it are in test_metadata_readers.py."""

from __future__ import annotations

import dataclasses
import json
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cxr_compress.device.classifier import Classifier
from cxr_compress.device.modelfile import MAX_METADATA_BYTES, ModelInfo, read_model
from cxr_compress.device.spec import PreprocessSpec
from cxr_compress.device.verify import verify_model
from cxr_compress.errors import ModelFileError
from cxr_compress.lite import audit, pack_file
from cxr_compress.lite.graph.flatbuffer import read_graphs, to_bytes, to_object
from cxr_compress.lite.pack_file import (
    FILE_IDENTIFIER,
    metadata_flatbuffer,
    pixel_normalization,
    read_metadata,
    with_metadata,
)
from tests.device.images import draw_image
from tests.device.reference import CAM_MODEL, FLOAT_MODEL, INT8_MODEL, VERSION1_MODEL

OLD = read_model(VERSION1_MODEL)


def changed(**fields: Any) -> ModelInfo:
    return dataclasses.replace(OLD.info, **fields)


def write(folder: Path, content: bytes) -> Path:
    path = folder / "model.tflite"
    path.write_bytes(content)
    return path


# --- the flatbuffer ---------------------------------------------------------------------------------------------------


def test_packed_file_has_the_standard_metadata_and_computes_the_same(tmp_path: Path) -> None:
    path = write(tmp_path, pack_file(OLD.content, OLD.info))
    file = read_model(path)
    found = read_metadata(file.content)
    assert found is not None
    assert found[4:8] == FILE_IDENTIFIER == b"M001"
    image = draw_image(3)
    np.testing.assert_array_equal(
        Classifier(path).predict(image).logits, Classifier(VERSION1_MODEL).predict(image).logits
    )
    assert audit(file.content).to_dict()["ops"] == audit(OLD.content).to_dict()["ops"]
    assert read_metadata(OLD.content) is None


def test_metadata_replaces_what_was_there_and_keeps_the_other_entries() -> None:
    before = [(entry.name, entry.buffer) for entry in to_object(OLD.content).metadata]
    once = with_metadata(to_object(OLD.content), b"first of all")
    twice = with_metadata(to_object(once), b"second")
    assert read_metadata(once) == b"first of all"
    assert read_metadata(twice) == b"second"
    after = to_object(twice).metadata
    assert [(entry.name, entry.buffer) for entry in after[:-1]] == before
    assert len(after) == len(before) + 1
    assert len(to_object(twice).buffers) == len(to_object(once).buffers)


def test_metadata_flatbuffer_same_info_gives_the_same_bytes() -> None:
    graph = read_graphs(OLD.content)[0]
    assert metadata_flatbuffer(graph, OLD.info) == metadata_flatbuffer(graph, changed())
    assert metadata_flatbuffer(graph, OLD.info) != metadata_flatbuffer(graph, changed(thresholds=(0.1, 0.2)))


def test_metadata_of_a_graph_without_such_logits_is_refused() -> None:
    three = {name: (0.5,) * 3 for name in ("logit_slope", "logit_offset", "thresholds")}
    info = changed(labels=("a", "b", "c"), **three)
    with pytest.raises(
        ModelFileError, match=r"expected an output of shape \(1, 3\), one logit a label; got \[\(1, 2\)\]"
    ):
        metadata_flatbuffer(read_graphs(OLD.content)[0], info)


@pytest.mark.parametrize(
    ("spec", "mean", "std"),
    [
        # 255 * 0.485, 255 * 0.229, ...: on the scale of pixels, per channel.
        (PreprocessSpec(8, 8), [123.675, 116.28, 103.53], [58.395, 57.12, 57.375]),
        (PreprocessSpec.preset("tf", 8, 8), [127.5], [127.5]),
        (PreprocessSpec.preset("unit", 8, 8), [0.0], [255.0]),
        (PreprocessSpec.preset("raw", 8, 8), [0.0], [1.0]),
        (PreprocessSpec.preset("xrv", 8, 8), [127.5], [255 * 0.5 / 1024]),
        (PreprocessSpec.preset("caffe", 8, 8), [103.939, 116.779, 123.68], [1.0, 1.0, 1.0]),
        (PreprocessSpec(8, 8, input="uint8"), [0.0], [1.0]),
    ],
    ids=["imagenet", "tf", "unit", "raw", "xrv", "caffe", "pixels"],
)
def test_pixel_normalization_of_a_pixel_is_what_the_spec_makes_of_it(
    spec: PreprocessSpec, mean: list[float], std: list[float]
) -> None:
    found = pixel_normalization(spec)
    np.testing.assert_allclose(found[0], mean, rtol=1e-12)
    np.testing.assert_allclose(found[1], std, rtol=1e-12)


# --- packing ----------------------------------------------------------------------------------------------------------


def test_pack_file_same_input_gives_the_same_bytes_also_from_a_packed_flatbuffer() -> None:
    packed = pack_file(OLD.content, OLD.info)
    assert pack_file(OLD.content, OLD.info) == packed
    again = read_model(INT8_MODEL)
    assert pack_file(again.content, again.info) == INT8_MODEL.read_bytes()


def test_pack_file_adds_card_hash_and_reference_outputs(tmp_path: Path) -> None:
    path = write(
        tmp_path, pack_file(OLD.content, changed(parents={"base.keras": "ab" * 32, "pruned.keras": "cd" * 32}))
    )
    info = read_model(path).info
    assert info.model_card.startswith(
        "# golden_int8\n\n**Research use only; not a medical device and not a diagnosis.**"
    )
    for text in ("SYNTHETIC", "| large heart | 0.8 | -0.4 | 0.45 |", info.canonical_hash, "fixed by hand, for tests"):
        assert text in info.model_card
    assert list(info.parents) == ["base.keras", "pruned.keras"]  # in the order they were made
    assert info.model_card.index("ab" * 32) < info.model_card.index("cd" * 32)
    assert zipfile.ZipFile(path).read("model_card.md").decode() == info.model_card
    assert verify_model(path).passed


def test_pack_file_keeps_a_card_that_was_written() -> None:
    packed = pack_file(OLD.content, changed(model_card="# Ours\n"))
    assert b"# Ours\n" in packed
    assert b"SYNTHETIC" not in packed


def test_pack_file_of_a_map_describes_both_outputs(tmp_path: Path) -> None:
    file = read_model(CAM_MODEL)
    path = write(tmp_path, pack_file(file.content, file.info))
    assert verify_model(path).passed
    found = read_metadata(read_model(path).content) or b""
    assert b"cam\0" in found
    assert b"logits\0" in found


def test_pack_file_float_end_of_int8_takes_the_step_behind_it() -> None:
    """An int8 network with a float end: its logits are codes all the same, and may be off by codes."""
    file = read_model(INT8_MODEL)
    float_end = with_float_end(file.content)
    info = dataclasses.replace(file.info, quant_type="int8_float_io", reference=None)
    packed = json.loads(member(pack_file(float_end, info), "cxr_compress.json"))
    assert file.info.reference is not None
    assert packed["reference"]["step"] == pytest.approx(file.info.reference.step)


def with_float_end(content: bytes) -> bytes:
    """The reference int8 network with a DEQUANTIZE behind its logits."""
    from ai_edge_litert import schema_py_generated as schema

    model = to_object(content)
    graph = model.subgraphs[0]
    code, tensor, operator = schema.OperatorCodeT(), schema.TensorT(), schema.OperatorT()
    code.builtinCode = code.deprecatedBuiltinCode = schema.BuiltinOperator.DEQUANTIZE
    code.version = 2
    tensor.shape, tensor.type, tensor.name = np.array([1, 2], np.int32), schema.TensorType.FLOAT32, b"end"
    operator.opcodeIndex = len(model.operatorCodes)
    operator.inputs, operator.outputs = graph.outputs, np.array([len(graph.tensors)], np.int32)
    model.operatorCodes.append(code)
    graph.tensors.append(tensor)
    graph.operators.append(operator)
    graph.outputs = operator.outputs
    model.signatureDefs = []
    return to_bytes(model)


def member(packed: bytes, name: str) -> bytes:
    import io

    return zipfile.ZipFile(io.BytesIO(packed)).read(name)


def test_pack_file_all_metadata_together_stays_under_the_limit() -> None:
    """The archive alone would fit; with the flatbuffer's own metadata, which names thresholds again, it does not."""
    spent = len(pack_file(OLD.content, OLD.info)) - len(OLD.content)
    assert spent < MAX_METADATA_BYTES / 10
    note = "x" * (MAX_METADATA_BYTES - spent - 500)
    assert len(pack_file(OLD.content, changed(recipe={"note": note}))) - len(OLD.content) < MAX_METADATA_BYTES
    with pytest.raises(ModelFileError, match=rf"metadata takes \d+ bytes, at most {MAX_METADATA_BYTES} are allowed"):
        pack_file(OLD.content, changed(recipe={"note": note + "x" * 600}))


def test_pack_file_fourteen_findings_spend_a_small_part_of_the_limit() -> None:
    """The flagship: 14 findings and a whole recipe; reference outputs grow with the findings."""
    from cxr_compress.recipe import Recipe

    file = read_model(FLOAT_MODEL)
    assert file.info.reference is not None
    count = 14
    reference = dataclasses.replace(
        file.info.reference, logits=((-1.2345678,) * count,) * 4, positive=((False,) * count,) * 4
    )
    labels = tuple(f"Pleural thickening {k}" for k in range(count))
    rows = {name: (0.123456789012345,) * count for name in ("logit_slope", "logit_offset", "thresholds")}
    info = changed(labels=labels, reference=reference, recipe=Recipe().to_dict(), **rows)
    # Labels three times, four numbers each, twice; card, recipe and vectors: a quarter of the limit at most.
    assert len(info.to_json()) < MAX_METADATA_BYTES / 4


def test_pack_file_wrong_size_in_the_info_is_refused() -> None:
    with pytest.raises(
        ModelFileError, match=r"input has shape \(1, 32, 32, 3\), its own metadata says \(1, 64, 64, 3\)"
    ):
        pack_file(OLD.content, changed(preprocess=PreprocessSpec(64, 64)))
