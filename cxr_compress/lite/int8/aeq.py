"""A second quantizer behind the same calibration: Google's ai-edge-quantizer, an optional package.

It works on flatbuffers and needs no TensorFlow. Ranges are ours, so that it can be compared with the converter's
quantizer on equal terms, and so that clipped ranges (`clipping`) serve both. On a DenseNet121 its file is as large and
errs as much (experiments/ptq_densenet.py). It has int8 types only.
"""

from __future__ import annotations

import contextlib
import io
from typing import Any

import numpy as np

from cxr_compress.errors import CompressionError, RuntimeUnavailableError, UnsupportedLayerError
from cxr_compress.lite.graph.flatbuffer import name_signature, to_bytes, to_object

CONVERTER, AEQ = QUANTIZERS = ("tensorflow", "aeq")


def check_quantizer(name: str, *, own_ends: bool = False, float_parts: bool = False) -> None:
    """Check which quantizer is asked for, and whether it can do what else is, before the slow part starts.

    Args:
        name: one of QUANTIZERS.
        own_ends: the ends are to be others than those of the quant type, pixels for instance.
        float_parts: some layers are to stay in float.

    Raises:
        CompressionError: none of QUANTIZERS, or something that it cannot do.
        RuntimeUnavailableError: ai-edge-quantizer is not installed.
    """
    if name not in QUANTIZERS:
        raise CompressionError(f"expected quantizer to be one of {', '.join(QUANTIZERS)}; got {name!r}")
    if name != AEQ:
        return
    if own_ends or float_parts:
        what = "pixels or another type at its ends" if own_ends else "layers left in float"
        raise CompressionError(
            f"the quantizer 'aeq' makes plain int8 and int8_float_io files, got {what}: leave it out"
        )
    _package()


def quantize_aeq(content: bytes, *, float_io: bool = False) -> bytes:
    """Quantize a float flatbuffer whose tensors carry their ranges to int8, as `lowering.quantize` does.

    Args:
        content: float flatbuffer with ranges (`ranges.write_ranges`).
        float_io: keep float32 at the ends.

    Returns:
        The int8 flatbuffer with named ends.

    Raises:
        RuntimeUnavailableError: ai-edge-quantizer is not installed.
        UnsupportedLayerError: it cannot quantize an operator.
    """
    quantizer, recipe = _package()
    named, known = _named_ranges(content)
    try:
        # Its progress bars go to stderr whether wanted or not.
        with contextlib.redirect_stderr(io.StringIO()), contextlib.redirect_stdout(io.StringIO()):
            made = quantizer.Quantizer(bytearray(named), recipe(float_io))
            result = made.quantize(known, enable_progress_bar=False, enable_progress_report=False)
    except (ValueError, RuntimeError, KeyError, NotImplementedError) as error:
        raise UnsupportedLayerError(
            f"ai-edge-quantizer cannot quantize the model: {str(error).strip().splitlines()[0]}: leave --quantizer out"
        ) from error
    # The output of a float-ended file has a name of its own; naming it also writes the signature anew.
    return name_signature(_inlined(bytes(result.quantized_model)))


def _package() -> tuple[Any, Any]:
    """The module that quantizes, and what makes its recipe."""
    try:
        from ai_edge_quantizer import algorithm_manager, qtyping, quantizer, recipe_manager
    except ImportError as error:
        raise RuntimeUnavailableError(
            "the quantizer 'aeq' is ai-edge-quantizer, which is not installed: pip install 'cxr-compress[aeq]'"
        ) from error
    operation = qtyping.TFLOperationName

    def recipe(float_io: bool) -> Any:
        manager = recipe_manager.RecipeManager()
        manager.add_static_config(".*", operation.ALL_SUPPORTED, activation_num_bits=8, weight_num_bits=8)
        for end in (operation.INPUT, operation.OUTPUT) if float_io else ():
            none = algorithm_manager.AlgorithmName.NO_QUANTIZE
            manager.add_quantization_config(regex=".*", operation_name=end, algorithm_key=none)
        return manager.get_quantization_recipe()

    return quantizer, recipe


def _inlined(content: bytes) -> bytes:
    """The same file with every constant inside its flatbuffer: the package puts them behind it, at offsets.

    Source: schema.fbs, Buffer.offset and Buffer.size, which newer runtimes alone know.
    """
    model = to_object(content)
    for buffer in model.buffers:
        if buffer.offset > 1:
            buffer.data = np.frombuffer(content, np.uint8, int(buffer.size), int(buffer.offset))
            buffer.offset = buffer.size = 0
    return to_bytes(model)


def _named_ranges(content: bytes) -> tuple[bytes, dict[str, Any]]:
    """The graph without ranges, with a signature and no name twice; and the ranges by name, as the package has them."""
    model = to_object(name_signature(content))
    names: set[str] = set()
    known: dict[str, Any] = {}
    for index, tensor in enumerate(model.subgraphs[0].tensors):
        name = tensor.name.decode("utf-8", "replace") if isinstance(tensor.name, bytes) else str(tensor.name)
        name = f"{name}#{index}" if name in names else name
        names.add(name)
        tensor.name = name.encode()
        found = tensor.quantization
        if found is not None and found.min is not None and len(found.min) == 1:
            known[name] = {"min": _bound(found.min[0]), "max": _bound(found.max[0])}
        tensor.quantization = None
    return to_bytes(model), known


def _bound(value: float) -> np.ndarray:
    return np.full((1, 1, 1, 1), value, np.float32)
