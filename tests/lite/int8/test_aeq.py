"""The second quantizer: the same ranges, the same audit, codes that differ by single steps."""

from __future__ import annotations

import importlib.util
import os
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cxr_compress.device.runner import Runner
from cxr_compress.errors import CompressionError, RuntimeUnavailableError
from cxr_compress.lite import audit, convert, freeze, require_integer
from cxr_compress.lite.graph.flatbuffer import CAM_NAME, OUTPUT_NAME
from cxr_compress.lite.inputs_outputs import ends_of
from cxr_compress.lite.int8.aeq import check_quantizer
from cxr_compress.lite.int8.ranges import measure_ranges, write_ranges
from cxr_compress.lite.lowering import lower, quantize
from cxr_compress.models.ends import with_cam
from tests.conftest import REPOSITORY
from tests.lite import nets

_SCRIPT = """
import sys
from pathlib import Path
from cxr_compress.lite.int8.aeq import quantize_aeq
for name in ("int8", "int8_float_io"):
    made = quantize_aeq(Path(sys.argv[1]).read_bytes(), float_io=name == "int8_float_io")
    Path(sys.argv[2], name).write_bytes(made)
assert "tensorflow" not in sys.modules
"""


def quantized(ranged: bytes, folder: Path) -> dict[str, bytes]:
    """The int8 files that ai-edge-quantizer makes of a graph, in an environment of its own without TensorFlow."""
    python = os.environ.get("CXR_AEQ_PYTHON")
    if not python:
        pytest.skip("ai-edge-quantizer not found: set CXR_AEQ_PYTHON to a Python with it and LiteRT")
    (folder / "ranged").write_bytes(ranged)
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY)}
    command = [python, "-c", _SCRIPT, str(folder / "ranged"), str(folder)]
    done = subprocess.run(command, check=False, capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout == ""  # a library does not print
    assert "Transformations" not in done.stderr
    return {name: (folder / name).read_bytes() for name in ("int8", "int8_float_io")}


@pytest.fixture(scope="module")
def ranged(block: Any) -> bytes:
    content = lower(freeze(with_cam(block)), "none")
    return write_ranges(content, measure_ranges(content, nets.batch(32, seed=1)))


@pytest.fixture(scope="module")
def files(ranged: bytes, tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    return quantized(ranged, tmp_path_factory.mktemp("aeq"))


@pytest.mark.parametrize("quant_type", ["int8", "int8_float_io"])
def test_quantize_aeq_makes_files_that_pass_the_audit(files: dict[str, bytes], quant_type: str) -> None:
    found = audit(files[quant_type])
    require_integer(found, ends=ends_of(quant_type))
    assert [tensor.name for tensor in found.outputs] == [OUTPUT_NAME, CAM_NAME]


def test_quantize_aeq_answers_as_the_converter_does(block: Any, ranged: bytes, files: dict[str, bytes]) -> None:
    images = nets.batch(32, seed=2)
    exact = block(images, training=False).numpy()
    ours, theirs = Runner(quantize(ranged)), Runner(files["int8"])
    assert theirs.output.scale is not None
    assert theirs.output.scale == pytest.approx(ours.output.scale, rel=1e-3)  # the same ranges
    # Two quantizers of one graph: a code of every activation may round to the other side.
    apart = np.abs(ours(images) - theirs(images)) / theirs.output.scale
    assert apart.max() <= 5
    assert apart.mean() < 1
    error = np.sqrt(np.square(theirs(images) - exact).mean())
    assert error < 0.05 * exact.std()
    assert np.square(theirs(images[::-1]) - exact).mean() > 100 * error**2  # the control: other images
    assert np.array_equal(Runner(files["int8_float_io"])(images), theirs(images))


def test_convert_with_the_second_quantizer_where_it_is_missing_is_one_line(block: Any) -> None:
    if importlib.util.find_spec("ai_edge_quantizer"):
        pytest.skip("ai-edge-quantizer is installed here")
    with pytest.raises(RuntimeUnavailableError, match=r"not installed: pip install 'cxr-compress\[aeq\]'"):
        convert(block, "int8", calibration=[nets.batch(32)], quantizer="aeq")


def test_check_quantizer_of_an_unknown_one_or_what_it_cannot_do_fails() -> None:
    with pytest.raises(CompressionError, match="expected quantizer to be one of tensorflow, aeq; got 'torch'"):
        check_quantizer("torch")
    with pytest.raises(CompressionError, match="got pixels or another type at its ends: leave it out"):
        check_quantizer("aeq", own_ends=True)
    with pytest.raises(CompressionError, match="got layers left in float: leave it out"):
        check_quantizer("aeq", float_parts=True)
    check_quantizer("tensorflow", own_ends=True, float_parts=True)
