"""What is written down about the runtimes is what they do."""

from __future__ import annotations

import importlib.metadata
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cxr_compress.device.runner import Runner
from cxr_compress.errors import CompressionError
from cxr_compress.lite import LiteModel, audit, convert, exporter
from cxr_compress.lite.audit import (
    LITERT,
    TARGETS,
    TFLITE_2_14,
    highest_version,
    require_target,
    runtimes_of,
)
from cxr_compress.lite.graph.flatbuffer import schema, to_bytes, to_object
from cxr_compress.lite.lowering import lower
from tests.lite import nets
from tests.lite.tflite_2_14 import load_all, python_2_14, run_all

# They stand for no operator: CUSTOM needs a name, the others are never written into a file.
NO_OPERATORS = {"CUSTOM", "DELEGATE", "PLACEHOLDER_FOR_GREATER_OP_CODES"}


def kinds() -> dict[str, int]:
    """All operators of the schema, with their numbers."""
    every = vars(schema().BuiltinOperator).items()
    return {name: number for name, number in every if not name.startswith("_") and name not in NO_OPERATORS}


def declares(number: int, version: int) -> bytes:
    """A file that declares one operator and uses none: a runtime looks it up, and nothing else can be wrong."""
    fb = schema()
    model, code, subgraph = fb.ModelT(), fb.OperatorCodeT(), fb.SubGraphT()
    # Old readers take the kind from an 8-bit field, whose 127 says that it is in the other one.
    code.builtinCode, code.deprecatedBuiltinCode, code.version = number, min(number, 127), version
    subgraph.tensors, subgraph.operators = [], []
    subgraph.inputs = subgraph.outputs = np.array([], np.int32)
    model.version, model.operatorCodes, model.subgraphs, model.buffers = 3, [code], [subgraph], [fb.BufferT()]
    return to_bytes(model)


def at_version(content: bytes, kind: str, version: int) -> bytes:
    """The same file with all operators of a kind declared in another version."""
    model, fb = to_object(content), schema()
    for code in model.operatorCodes:
        if code.builtinCode == getattr(fb.BuiltinOperator, kind):
            code.version = version
    return to_bytes(model)


def _litert(folder: Path) -> Callable[[list[bytes]], list[str]]:
    from ai_edge_litert.interpreter import Interpreter

    if not importlib.metadata.version("ai-edge-litert").startswith("2.3."):
        pytest.skip("LiteRT 2.3 not found: the table is about ai-edge-litert 2.3")

    def load(content: bytes) -> str:
        try:
            Interpreter(model_content=content)
        except (ValueError, RuntimeError) as error:
            return f"refused: {error}"
        return "loads"

    return lambda files: [load(content) for content in files]


def _tflite(folder: Path) -> Callable[[list[bytes]], list[str]]:
    python = python_2_14()
    return lambda files: load_all(python, files, folder)


@pytest.mark.parametrize(("target", "asked"), [(LITERT, _litert), (TFLITE_2_14, _tflite)])
def test_highest_version_is_the_last_one_that_the_runtime_loads(target: str, asked: Any, tmp_path: Path) -> None:
    asks = []
    for kind, number in kinds().items():
        highest = highest_version(kind, target)
        asks += [(kind, version, declares(number, version)) for version in {1, max(1, highest), highest + 1}]
    answers = asked(tmp_path)([content for _, _, content in asks])
    loads = {(kind, version): answer == "loads" for (kind, version, _), answer in zip(asks, answers, strict=True)}
    wrong = {key: there for key, there in loads.items() if there != (target in runtimes_of(*key))}
    assert not wrong
    # Both answers occurred, hundreds of times: the runtime was really asked.
    assert min(sum(loads.values()), len(loads) - sum(loads.values())) > 100


def test_highest_version_of_an_operator_nobody_has_is_zero() -> None:
    assert [highest_version("FlexErf", target) for target in TARGETS] == [0, 0]
    assert runtimes_of("FlexErf", 1) == ()
    assert runtimes_of("FULLY_CONNECTED", 12) == (LITERT,)


def test_require_target_of_a_newer_version_names_operator_and_layer(chain_files: dict[str, LiteModel]) -> None:
    found = audit(at_version(chain_files["int8"].content, "FULLY_CONNECTED", 12))
    message = (
        r"not for tflite-runtime-2.14: the file has FULLY_CONNECTED version 12 \(layer logits\), tflite-runtime-2.14 "
        "knows versions up to 10: replace that layer, choose another quant type"
    )
    with pytest.raises(CompressionError, match=message):
        require_target(found.too_new, TFLITE_2_14)
    require_target(found.too_new, LITERT)
    require_target(found.too_new, None)
    assert found.runtimes == (LITERT,)
    assert "too new FULLY_CONNECTED version 12 (layer logits)" in found.to_text()
    ops = {op["kind"]: op["runtimes"] for op in found.to_dict()["ops"]}
    assert ops["FULLY_CONNECTED"] == (LITERT,)
    assert ops["CONV_2D"] == TARGETS


def test_convert_for_a_target_refuses_a_file_that_it_cannot_load(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(exporter, "lower", lambda *args: at_version(lower(*args), "MEAN", 4))
    with pytest.raises(
        CompressionError, match=r"not for litert: the file has MEAN version 4 \(layer .*\), litert knows"
    ):
        convert(nets.chain(), "none", target_runtime="litert")


def test_convert_for_an_unknown_target_fails_before_anything_is_frozen() -> None:
    with pytest.raises(CompressionError, match=r"one of litert, tflite-runtime-2\.14; got 'tflite'"):
        convert(None, "none", target_runtime="tflite")


@pytest.mark.parametrize("build", [nets.chain, nets.dense_block, nets.depthwise, lambda: nets.linear(16)])
def test_convert_of_every_type_is_for_both_runtimes(build: Any) -> None:
    # linear(16): a kernel large enough to be quantized per channel by "dynamic", which is FULLY_CONNECTED version 12.
    model = build()
    names = ["none", "fp16", "dynamic", "int8", "int8_float_io", "int16x8"]
    for made in convert(model, names, calibration=[nets.batch(16)], target_runtime=TFLITE_2_14).values():
        assert made.audit.runtimes == TARGETS, made.quant_type
        assert {op.kind: op.version for op in made.audit.ops}.get("FULLY_CONNECTED", 0) < 12


@pytest.mark.parametrize("net", ["chain", "block"])
def test_files_of_every_type_give_on_tflite_runtime_what_they_give_on_litert(
    net: str, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    files: dict[str, LiteModel] = request.getfixturevalue(f"{net}_files")
    python, images = python_2_14(), nets.batch(32, seed=1)
    elsewhere = run_all(python, {name: made.content for name, made in files.items()}, images, tmp_path)
    for name, made in files.items():
        here, there = Runner(made.content).stored(images).astype(np.float64), elsewhere[name].astype(np.float64)
        # Kernels of the two may round a code differently, here and there on the way: 3 codes of the output are allowed.
        # Where float arithmetic ends in float32, other orders of summing: 1e-3 of the spread.
        apart = 3 * _code(made, files) or 1e-3 * np.ptp(here)
        assert np.abs(here - there).max() <= apart, name
        assert np.abs(here - np.roll(there, 1, axis=0)).max() > 10 * apart, name  # control


def _code(made: LiteModel, files: dict[str, LiteModel]) -> float:
    """A step of the output: 1 of integers, the int8 file's scale behind float ends, 0 for float arithmetic."""
    if made.quant_type == "int8_float_io":
        return files["int8"].audit.outputs[0].scale or 0.0
    return 0.0 if made.audit.outputs[0].dtype == "float32" else 1.0
