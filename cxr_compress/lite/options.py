"""The options of `convert`: default, choices, bounds and help of each, from which the flags of cxr_convert come."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from cxr_compress.errors import CompressionError
from cxr_compress.lite.audit import TARGETS
from cxr_compress.lite.calibration import DEFAULT_STEPS, MIN_IMAGES
from cxr_compress.lite.head import HEADS, LOGITS
from cxr_compress.lite.inputs_outputs import STORED_TYPES, input_output_of
from cxr_compress.quant_types import TYPES
from cxr_compress.recipe.fields import Section, entries_of, option
from cxr_compress.recipe.sections import ExportSection

_INTEGER = [name for name, quant_type in TYPES.items() if quant_type.calibrated]
_MIXING = " and ".join(name for name, quant_type in TYPES.items() if quant_type.mixes_float)


def _as_in_recipe(key: str) -> Any:
    """An option that recipes have too."""
    field = ExportSection.__dataclass_fields__[key]
    return dataclasses.field(default=field.default, metadata=field.metadata)


@dataclass(frozen=True)
class ConvertOptions(Section):
    """How a model becomes a .tflite file."""

    calibration_steps: int = option(
        DEFAULT_STEPS, "Calibration images at most, spread evenly over the set.", at_least=MIN_IMAGES
    )
    calibration_method: str = _as_in_recipe("calibration_method")
    # Of 99.99 and 99.999 the default is the better one on a DenseNet121 trained on X-rays, whole (logits off by 0.063
    # on average, against 0.087) and at a quarter of its MACs (0.107, 0.136).
    percentile: float = _as_in_recipe("percentile")
    float_layers: tuple[str, ...] = option(
        (), f"Layers to leave in float, by the name of the Keras layer or of a tensor; {_MIXING} only."
    )
    auto_fallback: int = _as_in_recipe("auto_fallback")
    denylisted_ops: tuple[str, ...] = option(
        (), f"Kinds of operators to leave in float wherever they occur, as MEAN; {_MIXING} only."
    )
    layer_report: bool = option(
        False, "Print how far each layer of the integer files is from the float one, in decibels, on 16 of the images."
    )
    fold_scales: bool = option(
        True,
        "Move the scale of each batch norm in front of a convolution into it, for the integer types, where rounding "
        "allows it: fewer operators, the same function; a DenseNet121 is 11 to 20 % faster in int8.",
    )
    inference_input_type: str | None = option(
        None,
        "What the input stores, where it is not to be the type's own: int8, uint8 or float32 for int8, int16 or "
        "float32 for int16x8; other types have float32. uint8 are codes with a scale, not pixels.",
        choices=STORED_TYPES,
    )
    inference_output_type: str | None = option(
        None, "What the output stores, with the same choices as the input.", choices=STORED_TYPES
    )
    target_runtime: str | None = option(
        None,
        "Runtime that has to run the file: fail where it lacks an operator, or its version in the file.",
        choices=TARGETS,
    )
    head: str = option(
        LOGITS,
        "What the files give: logits, or logits+cam with the class activation map, which cxr_predict --heatmap_dir "
        "draws; that needs a Keras file.",
        choices=HEADS,
    )
    edgetpu: bool = option(
        False,
        "Fail where Coral's Edge TPU would not run all of the file; int8 only.",
    )
    compare: bool = option(True, "Run every file beside the model, and refuse one that answers the same to everything.")
    force: bool = option(False, "Keep a file whose answers are unlike the model's, and say so.")
    num_threads: int | None = option(
        None, "Threads that run the images, all cores up to four by default; it changes no result.", at_least=1
    )

    @property
    def float_parts(self) -> bool:
        """Whether some layers are to stay in float."""
        return bool(self.float_layers or self.denylisted_ops or self.auto_fallback)

    def check_types(self, quant_types: Sequence[str], *, calibrated: bool, pixels: bool = False) -> None:
        """Check the options against the types that are wanted, before the slow part starts.

        Args:
            quant_types: wanted types.
            calibrated: there are calibration images.
            pixels: the files take uint8 pixels.

        Raises:
            CompressionError: no, an unknown or a repeated type, a type that needs calibration images where there are
                none, or an option that one of the types does not have.
        """
        _check_names(quant_types)
        needy = [name for name in quant_types if TYPES[name].calibrated]
        if needy and not calibrated:
            raise CompressionError(
                f"{' and '.join(needy)}: value ranges come from calibration images, got none: give about "
                f"{DEFAULT_STEPS} training images (calibration=, --calibration_data or --dataset)"
            )
        for name in quant_types:
            input_output_of(
                name, pixels=pixels, input_type=self.inference_input_type, output_type=self.inference_output_type
            )
        given = ", ".join(quant_types)
        strict = [name for name in quant_types if TYPES[name].integer_throughout]
        if self.float_parts and (strict or not any(TYPES[name].mixes_float for name in quant_types)):
            promise = f"{strict[0]} promises integer arithmetic throughout; " if strict else ""
            raise CompressionError(
                f"layers left in float need quant type {_MIXING}, got {given}: {promise}"
                f"ask for {_MIXING}, or leave float_layers, denylisted_ops and auto_fallback out"
            )
        if self.layer_report and not needy:
            raise CompressionError(f"layer_report is for {', '.join(_INTEGER)}, got {given}: leave it out")
        if self.edgetpu:
            self._check_edgetpu(quant_types)

    def _check_edgetpu(self, quant_types: Sequence[str]) -> None:
        if len(quant_types) != 1 or not TYPES[quant_types[0]].for_edgetpu:
            raise CompressionError(
                f"the Edge TPU runs int8 files alone, got {', '.join(quant_types)}: export int8 for it"
            )
        for name in ("inference_input_type", "inference_output_type"):
            if getattr(self, name) == "float32":
                raise CompressionError(f"the Edge TPU takes and gives 8 bits, got {name} float32: leave it out")


def _check_names(quant_types: Sequence[str]) -> None:
    if not quant_types or len(set(quant_types)) != len(quant_types) or not set(quant_types) <= set(TYPES):
        given = ", ".join(map(str, quant_types)) or "nothing"
        raise CompressionError(f"expected quant types among {', '.join(TYPES)}, each once, got {given}")


def describe_options() -> str:
    """The options and their defaults, a paragraph each, for `help(convert)`."""
    entries = entries_of(ConvertOptions)
    return "\n".join(f"            {entry.key}={entry.default!r}: {entry.option.help}" for entry in entries)
