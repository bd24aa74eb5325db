"""The prediction of what XNNPACK takes, asked of the runtime operator by operator."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import tensorflow as tf

from cxr_compress.device.native import without_stderr_lines
from cxr_compress.errors import ModelFileError
from cxr_compress.lite import convert
from cxr_compress.lite.graph.flatbuffer import read_graphs, to_bytes, to_object
from cxr_compress.lite.targets.xnnpack import xnnpack_report
from tests.lite import nets
from tests.lite.targets import target_nets


def taken_by_runtime(content: bytes) -> list[bool]:
    """Of each operator, whether LiteRT handed it to XNNPACK, each as a part of its own."""
    from ai_edge_litert.interpreter import Interpreter

    with without_stderr_lines("INFO: Created TensorFlow Lite XNNPACK delegate"):
        interpreter = Interpreter(model_content=content, experimental_disable_delegate_node_fusion=True)
        interpreter.allocate_tensors()
    parts = [op for op in interpreter._get_ops_details() if op["op_name"] == "DELEGATE"]
    written = {int(tensor) for part in parts for tensor in part["outputs"]}
    return [set(operator.outputs) <= written for operator in read_graphs(content)[0].operators]


def assert_predicted(content: bytes) -> None:
    """Every operator is predicted as the runtime has it."""
    ops, found = xnnpack_report(content).ops, taken_by_runtime(content)
    wrong = [(op.kind, op.reason, there) for op, there in zip(ops, found, strict=True) if op.taken != there]
    assert wrong == []
    assert all(bool(op.reason) != op.taken for op in ops)


@pytest.mark.parametrize("quant_type", ["none", "fp16", "dynamic", "int8", "int8_float_io"])
@pytest.mark.parametrize(
    "make", [target_nets.shapes_and_pools, target_nets.element_wise, target_nets.large_layers, nets.dense_block]
)
def test_xnnpack_report_of_every_type_agrees_with_the_runtime(make: Callable[[], Any], quant_type: str) -> None:
    model = make()
    images = nets.batch(16, 16, channels=model.input_shape[3])
    calibration = [images] if quant_type.startswith("int8") else None
    assert_predicted(convert(model, quant_type, calibration=calibration, calibration_steps=16).content)


def test_xnnpack_report_of_functions_in_float_agrees_with_the_runtime() -> None:
    assert_predicted(convert(target_nets.float_only(), "none").content)


def test_xnnpack_report_names_kind_reason_and_parts() -> None:
    content = convert(
        target_nets.shapes_and_pools(), "int8", calibration=[target_nets.images()], calibration_steps=16
    ).content
    report = xnnpack_report(content)
    left = {op.kind: op.reason for op in report.ops if not op.taken}
    assert left == {
        "AVERAGE_POOL_2D": "it computes in int8; XNNPACK has it for float32 only",
        "RESIZE_NEAREST_NEIGHBOR": "XNNPACK has no such operator",
        "STRIDED_SLICE": "its strides are not all 1",
    }
    # The average follows the first part; the slice and the resizing stand side by side and end the second.
    assert report.parts == 3
    text = report.to_text()
    assert "in 3 part(s)" in text
    assert "left       1 x STRIDED_SLICE: its strides are not all 1" in text
    document = report.to_dict()
    assert (document["taken"] + document["left"], document["left"]) == (len(document["ops"]), 3)
    assert {op["layer"] for op in document["ops"] if not op["taken"]} >= {"average"}


def test_xnnpack_report_of_scales_too_far_apart_refuses_the_sum() -> None:
    """x + 1 with x in the thousands: 8 bits of the sum cannot hold the 1, and XNNPACK refuses such a ratio."""
    keras = nets.keras
    image = keras.Input((16, 16, 3))
    large = tf.abs(nets.layers.Conv2D(4, 1, name="large")(image))
    model = keras.Model(image, nets.layers.GlobalAveragePooling2D()(large + 1.0))
    weights = np.random.default_rng(0).normal(size=(1, 1, 3, 4))
    model.get_layer("large").set_weights([5000.0 * weights, np.zeros(4)])
    content = convert(model, "int8", calibration=[nets.batch(16)], calibration_steps=16).content
    assert_predicted(content)
    (reason,) = [op.reason for op in xnnpack_report(content).ops if op.kind == "ADD"]
    assert "beyond 1/1024 to 256" in reason


def test_xnnpack_report_of_an_open_size_takes_nothing_of_it() -> None:
    model = to_object(convert(nets.chain(), "none").content)
    for tensor in model.subgraphs[0].tensors:
        tensor.shapeSignature = np.array([-1, *tensor.shape[1:]], np.int32)
    report = xnnpack_report(to_bytes(model))
    assert report.taken == 0
    assert all("known only when the model runs" in op.reason for op in report.ops)


def test_xnnpack_report_of_no_flatbuffer_says_so() -> None:
    with pytest.raises(ModelFileError, match=r"expected a \.tflite flatbuffer"):
        xnnpack_report(b"no model at all")
