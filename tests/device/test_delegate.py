"""Delegates: a missing library, one that is none, one without its device, and one that the model reaches."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest

from cxr_compress.device import Classifier, read_model
from cxr_compress.device.benchmark import measure_end_to_end, measure_together
from cxr_compress.device.interpreter import load_interpreter
from cxr_compress.device.runner import Runner
from cxr_compress.errors import RuntimeUnavailableError
from tests.device.delegates import NO_DEVICE, WATCHING, build
from tests.device.reference import FLOAT_MODEL, INT8_MODEL

pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="names of Linux's libraries")
CONTENT = read_model(INT8_MODEL).content


def test_delegate_that_is_missing_is_one_line() -> None:
    with pytest.raises(RuntimeUnavailableError, match=r"no_such_delegate\.so\.1 cannot be loaded .*apt-get") as caught:
        load_interpreter(CONTENT, delegate="no_such_delegate.so.1")
    assert "\n" not in str(caught.value)


def test_delegate_that_is_no_library_is_one_line(tmp_path: Path) -> None:
    text = tmp_path / "notes.so"
    text.write_text("nothing to load\n")
    with pytest.raises(RuntimeUnavailableError, match=r"notes\.so cannot be loaded"):
        load_interpreter(CONTENT, delegate=str(text))


def test_delegate_that_is_another_library_is_one_line_and_the_process_lives() -> None:
    with pytest.raises(
        RuntimeUnavailableError, match=r"libm\.so\.6 is no TFLite delegate: it has no function tflite_pl"
    ):
        load_interpreter(CONTENT, delegate="libm.so.6")
    assert load_interpreter(CONTENT).runtime  # the processor still runs it


def test_delegate_without_its_device_is_one_line_that_says_what_to_do(tmp_path: Path) -> None:
    library = build(tmp_path, NO_DEVICE, "libnothing.so")
    with pytest.raises(
        RuntimeUnavailableError, match=r"finds no device \(no accelerator is plugged in\): plug .*plugdev"
    ):
        Runner(CONTENT, delegate=str(library))


def test_delegate_is_asked_and_named_and_what_it_leaves_runs_on_the_processor(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    library = build(tmp_path, WATCHING, "libwatching.so", VERDICT=0)
    plain = Classifier(INT8_MODEL)
    assert "was asked" not in capfd.readouterr().err
    watched = Classifier(INT8_MODEL, delegate=str(library))
    assert "the delegate was asked" in capfd.readouterr().err
    assert watched.runtime == f"{plain.runtime} with libwatching.so"
    spec = plain.spec
    images = np.random.default_rng(0).normal(size=(2, *spec.input_shape)).astype(np.float32)
    if spec.input == "uint8":
        images = np.random.default_rng(0).integers(0, 256, (2, *spec.input_shape), np.uint8)
    # No XNNPACK beside another delegate: its kernels round otherwise by 3 steps at most.
    np.testing.assert_allclose(watched.logits(images), plain.logits(images), atol=3.01 * (plain.output_scale or 0))


def test_delegate_that_refuses_the_model_is_one_line(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    library = build(tmp_path, WATCHING, "librefusing.so", VERDICT=1)
    with pytest.raises(
        RuntimeUnavailableError, match=r"cannot run this model with the delegate .*librefusing\.so"
    ) as caught:
        load_interpreter(CONTENT, delegate=str(library))
    assert "\n" not in str(caught.value)
    capfd.readouterr()


def test_delegate_reaches_both_ways_of_timing(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    library = str(build(tmp_path, WATCHING, "libwatching.so", VERDICT=0))
    model = read_model(FLOAT_MODEL)
    alone = measure_together({"a": model.content}, runs=1, warmup=0, delegate=library)
    whole = measure_end_to_end({"a": model}, runs=1, warmup=0, delegate=library, image_size=16)
    assert alone["a"].runtime.endswith("with libwatching.so")
    assert whole["a"].runtime.endswith("with libwatching.so")
    assert capfd.readouterr().err.count("was asked") >= 2


def test_model_compiled_for_the_edge_tpu_without_delegate_says_how_to_run_it() -> None:
    """All operators are named as the one that the compiler leaves behind."""
    pytest.importorskip("ai_edge_litert.schema_py_generated")
    import flatbuffers
    from ai_edge_litert import schema_py_generated as fb

    loaded = fb.ModelT.InitFromObj(fb.Model.GetRootAs(CONTENT, 0))
    for code in loaded.operatorCodes:
        code.builtinCode = code.deprecatedBuiltinCode = fb.BuiltinOperator.CUSTOM
        code.customCode = b"edgetpu-custom-op"
    for operator in loaded.subgraphs[0].operators:
        operator.builtinOptionsType, operator.builtinOptions = 0, None
    builder = flatbuffers.Builder(1 << 16)
    builder.Finish(loaded.Pack(builder), b"TFL3")
    with pytest.raises(
        RuntimeUnavailableError, match=r"compiled for Coral's Edge TPU: run it there with --delegate=libed"
    ):
        load_interpreter(bytes(builder.Output()))
