"""A frozen graph of operations brought to float32: no other precision inside, no casts of pixels to whole numbers.

TFLite has kernels for float32 and for quantised numbers. A graph that a model of mixed precision left behind computes
in float16 or bfloat16 between casts; with every type in it made float32, the casts pass on and the weights are equal.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from cxr_compress.errors import UnsupportedLayerError

PIXELS = "pixels"
"""Scope of the operations that make whole numbers of float32 pixels."""


def other_precisions(graph_def: Any) -> tuple[str, ...]:
    """Names of the float types in a graph that are not float32, sorted."""
    found = {value for node in _nodes(graph_def) for attr in node.attr.values() for value in _types(attr)}
    return tuple(sorted(_names()[value] for value in found & set(_names())))


def in_float32(graph_def: Any) -> Any:
    """The same graph with float32 in place of float16, bfloat16 and float64; constants keep their values."""
    changed = type(graph_def)()
    changed.CopyFrom(graph_def)
    for function in changed.library.function:
        for argument in (*function.signature.input_arg, *function.signature.output_arg):
            argument.type = _widened(argument.type)
    for node in _nodes(changed):
        for attr in node.attr.values():
            _widen(attr)
    return changed


def without_pixel_casts(graph_def: Any, source: str) -> Any:
    """The same graph in which float32 pixels that are cast to uint8 and at once back to float32 stay as they are.

    Args:
        graph_def: whose uint8 pixels come from a Cast in the scope PIXELS; any other use of them keeps it.
        source: name of the float32 input.
    """
    import tensorflow as tf

    changed = type(graph_def)()
    changed.CopyFrom(graph_def)
    passing = {node.name: node for node in changed.node if node.op == "Identity"}
    for node in changed.node:
        if node.op != "Cast" or node.attr["DstT"].type != tf.float32.as_datatype_enum:
            continue
        origin = node.input[0]
        while origin in passing:
            origin = passing[origin].input[0]
        if origin == f"{PIXELS}/Cast":
            node.op = "Identity"
            node.input[:] = [source]
            for name in list(node.attr):
                del node.attr[name]
            node.attr["T"].type = tf.float32.as_datatype_enum
    return changed


def function_of(graph_def: Any, like: Any) -> Any:
    """A concrete function of a graph that was changed, with the inputs and outputs of the one it came from.

    Raises:
        UnsupportedLayerError: TensorFlow has an operation in the graph for the old types only.
    """
    from tensorflow.python.eager.wrap_function import function_from_graph_def

    inputs, outputs = ([tensor.name for tensor in tensors] for tensors in (like.inputs, like.outputs))
    try:
        made = function_from_graph_def(graph_def, inputs, outputs)
    except Exception as error:  # TensorFlow raises nearly every type here; the cause is kept, and named in the line
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise UnsupportedLayerError(
            f"the model computes in another precision and cannot be taken in float32 ({reason}): export it in float32"
        ) from error
    made.graph.structured_outputs = like.graph.structured_outputs
    made.graph.structured_input_signature = like.graph.structured_input_signature
    return made


def _nodes(graph_def: Any) -> Iterator[Any]:
    yield from graph_def.node
    for function in graph_def.library.function:
        yield from function.node_def


def _names() -> dict[int, str]:
    """Number of every float type but float32 -> its name."""
    import tensorflow as tf

    return {kind.as_datatype_enum: kind.name for kind in (tf.float16, tf.bfloat16, tf.float64)}


def _widened(kind: int) -> int:
    import tensorflow as tf

    return tf.float32.as_datatype_enum if kind in _names() else kind


def _types(attr: Any) -> list[int]:
    return [attr.type, attr.tensor.dtype, *attr.list.type]


def _widen(attr: Any) -> None:
    import tensorflow as tf

    field = attr.WhichOneof("value")
    if field == "type":
        attr.type = _widened(attr.type)
    elif field == "list":
        attr.list.type[:] = [_widened(kind) for kind in attr.list.type]
    elif field == "tensor" and attr.tensor.dtype in _names():
        values = np.asarray(tf.make_ndarray(attr.tensor)).astype(np.float32)
        attr.tensor.CopyFrom(tf.make_tensor_proto(values, tf.float32))
    elif field == "func":
        for inner in attr.func.attr.values():
            _widen(inner)
