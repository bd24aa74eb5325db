"""A Keras model as a list of steps, nested models opened up, and what quantization-aware training refuses of it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from cxr_compress.errors import UnsupportedLayerError
from cxr_compress.keras2 import keras
from cxr_compress.models.keras_graph import require_graph, traits_of, unroll
from cxr_compress.models.layer_traits import LAYERS

layers = keras.layers

_SUPPORTED = (layers.Conv2D, layers.DepthwiseConv2D, layers.Dense, layers.SeparableConv2D)
# The kernel of each layer that has one: what quantization, batch norms and masks act on.
KERNELS: dict[type, str] = {kind: LAYERS[kind.__name__].kernel for kind in _SUPPORTED}
# What becomes part of the operator in front of it, where nothing else reads that operator's result.
_RECTIFIERS = ("relu", "relu6")
_RELU6 = 6.0
_PAIR = 2
_IMAGE_RANK = 4
_SHOWN = 5


@dataclass(frozen=True)
class Step:
    """One call of one layer.

    Attributes:
        name: the layer's path: nested models put their names and "/" in front.
        layer: the layer that is called.
        inputs: the steps whose results it reads, in the order of its arguments.
    """

    name: str
    layer: Any
    inputs: tuple[int, ...]


@dataclass(frozen=True)
class Steps:
    """A model of one input and one output as calls, each after those it reads; `output` is the last one's number."""

    calls: tuple[Step, ...]
    output: int

    def readers(self) -> list[list[int]]:
        """For every step, the steps that read it, once for each time they do."""
        found: list[list[int]] = [[] for _ in self.calls]
        for number, step in enumerate(self.calls):
            for source in step.inputs:
                found[source].append(number)
        return found


def read_steps(model: Any) -> Steps:
    """Read the wiring of a model, nested models opened up; the model is not modified.

    A layer without weights that is called twice becomes two steps with names of their own. Layers that augment images
    in training are left out.

    Raises:
        UnsupportedLayerError: no functional or Sequential model of one input and one output, or a layer that
            quantization-aware training cannot take; it names each, its type and what to do.
    """
    require_graph(model)
    if len(model.inputs) != 1 or len(model.outputs) != 1:
        raise UnsupportedLayerError(
            f"expected one input and one output, got {len(model.inputs)} and {len(model.outputs)}: build a model of "
            "the part that takes the image and gives the logits"
        )
    start = model.inputs[0]._keras_history.layer
    calls, unrolled = [Step(start.name, start, ())], unroll(model)
    made_by = {unrolled.source: 0}  # number of a tensor -> number of the step
    for call in unrolled.calls:
        inputs = tuple(made_by[tensor] for tensor in call.reads)
        step = len(calls)
        if traits_of(call.layer).kind == "augmentation":
            # It changes images in training alone: in an int8 file, and so in training for one, it is not there.
            (step,) = inputs
        else:
            calls.append(Step(call.path, call.layer, inputs))
        made_by.update(dict.fromkeys(call.makes, step))
    _refuse(calls)
    return Steps(tuple(_with_own_names(calls)), made_by[unrolled.results[0]])


def is_rectifier(layer: Any) -> bool:
    """Whether a layer is a ReLU or ReLU6 and nothing else."""
    return type(layer) is layers.ReLU or (type(layer) is layers.Activation and _name_of(layer) in _RECTIFIERS)


def passes_on(layer: Any) -> bool:
    """Whether a layer's result has the scale of what it reads."""
    return traits_of(layer).keeps_scale or (type(layer) is layers.Activation and _name_of(layer) == "linear")


def is_linear(layer: Any) -> bool:
    """Whether a layer with a kernel applies no activation of its own."""
    return _name_of(layer) == "linear"


def _with_own_names(calls: Sequence[Step]) -> Iterator[Step]:
    seen: Counter[str] = Counter()
    for step in calls:
        seen[step.name] += 1
        name = step.name if seen[step.name] == 1 else f"{step.name}_call{seen[step.name]}"
        yield Step(name, step.layer, step.inputs)


def _refuse(calls: Sequence[Step]) -> None:
    """Refuse by name what cannot be trained quantized."""
    times = Counter(id(step.layer) for step in calls)
    bad: dict[str, str] = {}
    for step in calls:
        reason = "called more than once" if times[id(step.layer)] > 1 and step.layer.weights else _objection(step)
        if reason:
            bad.setdefault(step.name, f"{step.name} ({type(step.layer).__name__}: {reason})")
    if bad:
        listed = ", ".join(list(bad.values())[:_SHOWN]) + (
            f", and {len(bad) - _SHOWN} more" if len(bad) > _SHOWN else ""
        )
        raise UnsupportedLayerError(
            f"quantization-aware training cannot take {listed}: rebuild the model without, or quantize it after "
            "training (lite.convert)"
        )


def _objection(step: Step) -> str:
    """Why a step cannot be taken; "" if it can."""
    kind = type(step.layer)
    if kind is not layers.InputLayer and step.layer.dtype_policy.name != "float32":
        return f"computes in {step.layer.dtype_policy.name}, not float32"
    if getattr(step.layer, "data_format", None) == "channels_first":
        return "channels come first"
    check = _CHECKS.get(kind)
    if check is None and not passes_on(step.layer) and kind not in (layers.InputLayer, layers.GlobalAveragePooling2D):
        return "no int8 rule for this type"
    return check(step) if check else ""


def _odd_activation(step: Step) -> str:
    name = _name_of(step.layer)
    if name in ("linear", *_RECTIFIERS):
        return ""
    advice = ", where a model has to end in logits" if name in ("sigmoid", "softmax") else ""
    return f"activation {name}, int8 takes ReLU and ReLU6{advice}"


def _odd_rectifier(step: Step) -> str:
    layer = step.layer
    plain = not layer.negative_slope and not layer.threshold and layer.max_value in (None, _RELU6)
    return "" if plain else "neither ReLU nor ReLU6"


def _odd_norm(step: Step) -> str:
    rank = step.layer.input_spec.ndim
    last = list(step.layer.axis) == [rank - 1] and rank in (2, 4)
    return "" if last else "normalizes another axis than the last of an image or vector"


def _odd_scaling(step: Step) -> str:
    rank = len(step.layer.output_shape)
    return "" if rank == _IMAGE_RANK else f"scales a tensor of {rank} axes, int8 takes images here"


def _odd_sum(step: Step) -> str:
    return "" if len(step.inputs) == _PAIR else f"{len(step.inputs)} tensors: add two at a time"


def _name_of(layer: Any) -> str:
    function = layer.activation
    return str(getattr(function, "__name__", type(function).__name__))


_CHECKS: dict[type, Callable[[Step], str]] = {
    **dict.fromkeys((*KERNELS, layers.Activation), _odd_activation),
    layers.ReLU: _odd_rectifier,
    layers.BatchNormalization: _odd_norm,
    layers.Add: _odd_sum,
    layers.Rescaling: _odd_scaling,
}
