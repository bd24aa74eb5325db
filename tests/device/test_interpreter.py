from __future__ import annotations

import importlib
import sys
from pathlib import Path

import numpy as np
import pytest

from cxr_compress.device import interpreter
from cxr_compress.device.interpreter import load_interpreter
from cxr_compress.device.modelfile import read_model
from cxr_compress.errors import ModelFileError, RuntimeUnavailableError
from tests.device.reference import INT8_MODEL, NEWER_OP_FLATBUFFER

CONTENT = read_model(INT8_MODEL).content


def install_fake(folder: Path, module: str, distribution: str, version: str, code: str) -> None:
    """Put a package with its metadata into a folder, as pip would."""
    (folder / module).mkdir()
    (folder / module / "__init__.py").write_text("")
    (folder / module / "interpreter.py").write_text(code)
    metadata = folder / f"{distribution.replace('-', '_')}-{version}.dist-info"
    metadata.mkdir()
    (metadata / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {distribution}\nVersion: {version}\n")


def use_only(monkeypatch: pytest.MonkeyPatch, *runtimes: interpreter._Runtime) -> None:
    monkeypatch.setattr(interpreter, "_RUNTIMES", runtimes)


def test_load_reference_model_gives_an_allocated_interpreter_and_its_version() -> None:
    loaded = load_interpreter(CONTENT)
    name, version = loaded.runtime.split()
    assert name in ("ai-edge-litert", "tflite-runtime")
    assert version == importlib.metadata.version(name)
    details = loaded.interpreter.get_input_details()[0]
    loaded.interpreter.set_tensor(details["index"], np.zeros(details["shape"], details["dtype"]))
    loaded.interpreter.invoke()


@pytest.mark.parametrize(("name", "module"), [("litert", "ai_edge_litert"), ("tflite-runtime", "tflite_runtime")])
def test_load_named_runtime_is_that_runtime_or_an_error_naming_it(name: str, module: str) -> None:
    distribution = {"litert": "ai-edge-litert", "tflite-runtime": "tflite-runtime"}[name]
    if importlib.util.find_spec(module) is not None:
        assert load_interpreter(CONTENT, runtime=name).runtime.startswith(distribution)
        return
    with pytest.raises(RuntimeUnavailableError, match=f"{distribution} is not installed; install one: pip install"):
        load_interpreter(CONTENT, runtime=name)


def test_load_never_imports_tensorflow() -> None:
    load_interpreter(CONTENT)
    assert "tensorflow" not in interpreter.__dict__
    assert all(runtime.module != "tensorflow" for runtime in interpreter._RUNTIMES)


def test_load_nothing_installed_lists_each_runtime_and_the_pip_line(monkeypatch: pytest.MonkeyPatch) -> None:
    use_only(
        monkeypatch,
        interpreter._Runtime("litert", "ai-edge-litert", "module_that_is_missing_a"),
        interpreter._Runtime("tflite-runtime", "tflite-runtime", "module_that_is_missing_b"),
    )
    text = (
        "no TFLite runtime can be used: ai-edge-litert is not installed; tflite-runtime is not installed; "
        r"install one: pip install ai-edge-litert, or pip install \"tflite-runtime==2\.14\.0\" \"numpy<2\""
    )
    with pytest.raises(RuntimeUnavailableError, match=text):
        load_interpreter(CONTENT)


def test_load_tflite_runtime_with_numpy_2_is_refused_before_it_is_imported(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # What is faked is only what is installed; importing the fake would fail the test.
    install_fake(tmp_path, "numpy2_victim", "tflite-runtime", "2.14.0", "raise SystemError('imported')")
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setattr(np, "__version__", "2.4.1")
    use_only(monkeypatch, interpreter._Runtime("tflite-runtime", "tflite-runtime", "numpy2_victim"))
    text = r"tflite-runtime 2\.14\.0 needs NumPy 1, found 2\.4\.1 \(pip install \"numpy<2\" \"opencv-python-headless<4"
    with pytest.raises(RuntimeUnavailableError, match=text) as caught:
        load_interpreter(CONTENT)
    assert "\n" not in str(caught.value)
    assert "numpy2_victim.interpreter" not in sys.modules


def test_load_tflite_runtime_with_numpy_1_control_is_imported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    install_fake(tmp_path, "numpy1_friend", "tflite-runtime", "2.14.0", "raise ImportError('libc.so.6: GLIBC_2.99')")
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setattr(np, "__version__", "1.26.4")
    use_only(monkeypatch, interpreter._Runtime("tflite-runtime", "tflite-runtime", "numpy1_friend"))
    text = r"tflite-runtime 2\.14\.0 cannot be imported \(libc\.so\.6: GLIBC_2\.99\)"
    with pytest.raises(RuntimeUnavailableError, match=text):
        load_interpreter(CONTENT)


def test_load_auto_goes_on_to_the_next_runtime_when_the_first_cannot_be_imported(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    install_fake(tmp_path, "broken_litert", "ai-edge-litert", "9.9.9", "raise ImportError('wrong processor')")
    monkeypatch.syspath_prepend(str(tmp_path))
    broken = interpreter._Runtime("litert", "ai-edge-litert", "broken_litert")
    use_only(monkeypatch, broken, *interpreter._RUNTIMES)
    assert load_interpreter(CONTENT).interpreter is not None
    use_only(monkeypatch, broken)
    with pytest.raises(RuntimeUnavailableError, match=r"ai-edge-litert 9\.9\.9 cannot be imported \(wrong processor\)"):
        load_interpreter(CONTENT)


@pytest.mark.parametrize("content", [b"", b"\0" * 64, b"\x1c\0\0\0TFL2" + CONTENT[8:]])
def test_load_content_without_identifier_is_refused_before_a_runtime_sees_it(content: bytes) -> None:
    # tflite-runtime 2.14 may crash the process on such bytes.
    with pytest.raises(ModelFileError, match=r"expected a TFLite flatbuffer, got \d+ other bytes; convert it"):
        load_interpreter(content)


def test_load_model_of_another_schema_is_one_line(capfd: pytest.CaptureFixture[str]) -> None:
    # An identifier, then an empty table: schema version 0.
    content = b"\x1c\0\0\0TFL3" + bytes(64)
    with pytest.raises(ModelFileError, match=r"cannot read the model: .*; convert it again") as caught:
        load_interpreter(content)
    assert str(caught.value).isprintable()
    capfd.readouterr()


def test_load_operator_newer_than_the_runtime_says_what_to_do() -> None:
    content = NEWER_OP_FLATBUFFER.read_bytes()
    if importlib.util.find_spec("ai_edge_litert") is not None:
        assert load_interpreter(content).runtime.startswith("ai-edge-litert")
        return
    text = (
        r"tflite-runtime 2\.14\.0 cannot run this model: Didn't find op for builtin opcode 'FULLY_CONNECTED' "
        r"version '12'.*or convert the model with another --quant_type"
    )
    with pytest.raises(RuntimeUnavailableError, match=text):
        load_interpreter(content)


@pytest.mark.parametrize("num_threads", [0, -1, True, 1.0])
def test_load_wrong_num_threads_is_named(num_threads: int) -> None:
    with pytest.raises(RuntimeUnavailableError, match="expected num_threads as a whole number above 0, got"):
        load_interpreter(CONTENT, num_threads=num_threads)


def test_load_unknown_runtime_lists_the_known_ones() -> None:
    with pytest.raises(
        RuntimeUnavailableError, match="expected a runtime of auto, litert, tflite-runtime; got 'coral'"
    ):
        load_interpreter(CONTENT, runtime="coral")


def test_load_is_silent_about_xnnpack(capfd: pytest.CaptureFixture[str]) -> None:
    load_interpreter(CONTENT)
    assert capfd.readouterr() == ("", "")
