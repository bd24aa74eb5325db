"""What a model file says about itself, what it answered when it was packed, and the JSON it is stored as."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from cxr_compress.device.spec import PreprocessSpec
from cxr_compress.errors import DataError, ModelFileError

INTENDED_USE = "Research use only; not a medical device and not a diagnosis."
FORMAT_VERSION = 3
JSON_NAME = "cxr_compress.json"
NOT_STATED = "not stated"

# How logits become probabilities: each by its own sigmoid; all by one softmax, of classes that exclude one another.
ACTIVATIONS = ("sigmoid", "softmax")
# What the file computes: those logits, or the probabilities themselves, where no logits could be had of the model.
OUTPUTS = ("logits", "probabilities")
# What a file of version 2, and one of version 1 besides, does not say.
_SINCE_3: dict[str, Any] = {"activation": "sigmoid", "outputs": "logits"}
_SINCE_2: dict[str, Any] = {"calibration_source": NOT_STATED, "model_card": "", "canonical_hash": "", "reference": None}
# What versions 1 and 2 called it.
_FORMER_NAMES = {"golden": "reference"}
# Probabilities nearer to 0 or 1 have no finite logit in float32.
_LEAST_PROBABILITY = 1e-7
_AGAIN = "copy or convert the file again"


@dataclass(frozen=True)
class ReferenceOutputs:
    """What a model file answered when it was packed; n images, k findings.

    Attributes:
        seed: of the images, for `draw_reference_images`.
        logits: n rows of k numbers.
        positive: n rows of k decisions, at the thresholds of the file.
        step: the value of one code (LSB) of the logits; None where the file computes them in float.
        runtime: what computed them, for instance "ai-edge-litert 2.3.0".
        kernels: how far a logit was off when the same runtime used its other set of kernels (without XNNPACK). Kernels
            round in different places, and a deep int8 network adds that up: on DenseNets to 8 codes.
    """

    seed: int
    logits: tuple[tuple[float, ...], ...]
    positive: tuple[tuple[bool, ...], ...]
    step: float | None
    runtime: str
    kernels: float = 0.0

    def __post_init__(self) -> None:
        whole = isinstance(self.seed, int) and not isinstance(self.seed, bool) and self.seed >= 0
        if not whole or not isinstance(self.runtime, str):
            raise ModelFileError(f"expected reference outputs with a seed and a runtime, got {self.seed!r}; {_AGAIN}")
        if self.step is not None and not (_is_number(self.step) and self.step > 0):
            raise ModelFileError(f"expected the step of the reference outputs above 0, got {self.step!r}; {_AGAIN}")
        if not _is_number(self.kernels) or self.kernels < 0:
            raise ModelFileError(f"expected kernels of the reference outputs from 0, got {self.kernels!r}; {_AGAIN}")
        object.__setattr__(self, "logits", _rows("logits", self.logits, _is_number))
        object.__setattr__(self, "positive", _rows("positive", self.positive, lambda value: isinstance(value, bool)))
        if [len(row) for row in self.logits] != [len(row) for row in self.positive] or not self.logits:
            raise ModelFileError(f"expected reference outputs with one decision for each logit; {_AGAIN}")

    @property
    def shape(self) -> tuple[int, int]:
        """(n, k)."""
        return len(self.logits), len(self.logits[0])

    def to_dict(self) -> dict[str, Any]:
        """Give the fields as JSON-ready values."""
        rows = {"logits": [list(row) for row in self.logits], "positive": [list(row) for row in self.positive]}
        return {"seed": self.seed, **rows, "step": self.step, "runtime": self.runtime, "kernels": self.kernels}

    @classmethod
    def from_dict(cls, fields: Any) -> ReferenceOutputs:
        """Build the vectors from what `to_dict` gave.

        Raises:
            ModelFileError: an unknown or missing key, or a value of the wrong kind or length.
        """
        known = {"seed", "logits", "positive", "step", "runtime", "kernels"}
        if not isinstance(fields, dict) or set(fields) != known:
            keys = sorted(fields) if isinstance(fields, dict) else fields
            raise ModelFileError(f"expected reference outputs with {sorted(known)}, got {keys!r}; {_AGAIN}")
        return cls(**fields)


@dataclass(frozen=True)
class ModelInfo:
    """What a model file says about itself; `k` is the number of findings.

    Attributes:
        model_name: decodes the recipe, for instance chexnet_m50_w70_int8.
        labels: k findings in the order of the logits.
        preprocess: how an image becomes the input.
        logit_slope: k numbers; probability = sigmoid(slope * logit + offset), or one softmax of all k of them.
        logit_offset: k numbers; undo the weights of the training loss (log of pos_weight) and calibrate.
        thresholds: k numbers in [0, 1] on that probability; a finding at or above it is positive. Of classes that
            exclude one another the likeliest is positive and no other: then these are not used, and are 0.5.
        threshold_source: how and on which set the thresholds were chosen.
        quant_type: none, fp16, dynamic, int8, int8_float_io, int16x8.
        parents: earlier stage -> sha256 of what it made, the model that it all began with first.
        training_data: the data set, in words.
        attribution: what its license asks to be said.
        synthetic: trained on drawn phantom images, so its findings say nothing about patients.
        recipe: the recipe of the run, JSON-ready.
        intended_use: the sentence every output carries.
        calibration_source: how and on which set slope and offset were fitted.
        model_card: Markdown for people; "" where there is none.
        canonical_hash: of weights, operators and wiring alone (`lite.canonical_hash`): equal for equal networks,
            however they are packed; "" where it was not computed.
        reference: what the file answers to drawn images; None where it was not asked.
        activation: one of ACTIVATIONS: "sigmoid" for findings of their own, "softmax" for classes that exclude one
            another.
        outputs: one of OUTPUTS: what the file computes; `logits_of` turns either into logits.
    """

    model_name: str
    labels: tuple[str, ...]
    preprocess: PreprocessSpec
    logit_slope: tuple[float, ...]
    logit_offset: tuple[float, ...]
    thresholds: tuple[float, ...]
    threshold_source: str
    quant_type: str
    parents: dict[str, str] = field(default_factory=dict)
    training_data: str = ""
    attribution: str = ""
    synthetic: bool = False
    recipe: dict[str, Any] = field(default_factory=dict)
    intended_use: str = INTENDED_USE
    calibration_source: str = NOT_STATED
    model_card: str = ""
    canonical_hash: str = ""
    reference: ReferenceOutputs | None = None
    activation: str = "sigmoid"
    outputs: str = "logits"

    def __post_init__(self) -> None:
        object.__setattr__(self, "labels", _checked_labels(self.labels))
        for name in ("logit_slope", "logit_offset", "thresholds"):
            object.__setattr__(self, name, _numbers(name, getattr(self, name), len(self.labels)))
        if not all(0.0 <= value <= 1.0 for value in self.thresholds):
            raise ModelFileError(f"expected thresholds from 0 to 1, got {self.thresholds}")
        if not isinstance(self.preprocess, PreprocessSpec):
            raise ModelFileError(f"expected preprocess as a PreprocessSpec, got {type(self.preprocess).__name__}")
        for name in _TEXTS:
            _expect(name, getattr(self, name), str)
        for name in ("parents", "recipe"):
            _expect(name, getattr(self, name), dict)
        _expect("synthetic", self.synthetic, bool)
        for name, known in (("activation", ACTIVATIONS), ("outputs", OUTPUTS)):
            if getattr(self, name) not in known:
                raise ModelFileError(f"expected {name} to be one of {', '.join(known)}, got {getattr(self, name)!r}")
        if self.activation == "softmax" and len(self.labels) == 1:
            raise ModelFileError(f"expected two or more classes that exclude one another (softmax), got {self.labels}")
        if self.reference is not None and _expect("reference", self.reference, ReferenceOutputs).shape[1] != len(
            self.labels
        ):
            raise ModelFileError(
                f"expected reference outputs of {len(self.labels)} findings, got {self.reference.shape[1]}"
            )

    def to_dict(self) -> dict[str, Any]:
        """Give the fields and `format_version` as JSON-ready values."""
        fields = {item.name: getattr(self, item.name) for item in dataclasses.fields(self)}
        fields = {name: list(value) if isinstance(value, tuple) else value for name, value in fields.items()}
        later = {
            "reference": self.reference.to_dict() if self.reference is not None else None,
            "parents": [list(pair) for pair in self.parents.items()],  # a JSON object would lose their order
        }
        return {**fields, **later, "preprocess": self.preprocess.to_dict(), "format_version": FORMAT_VERSION}

    def to_json(self) -> str:
        """Give the fields as JSON text: keys sorted, so equal infos give equal text."""
        return dump_json(self.to_dict())

    @classmethod
    def from_dict(cls, fields: dict[str, Any]) -> ModelInfo:
        """Build an info from what `to_dict` gave, now or in an earlier version of the format.

        Raises:
            ModelFileError: a newer format version, an unknown or missing key, a value of the wrong kind or length.
        """
        fields = dict(fields)
        version = _checked_version(fields.pop("format_version", None))
        if version < FORMAT_VERSION:
            fields = {_FORMER_NAMES.get(name, name): value for name, value in fields.items()}
        if version == 1 and not set(fields) & set(_SINCE_2):
            fields |= _SINCE_2
        if version < FORMAT_VERSION and not set(fields) & set(_SINCE_3):
            fields |= _SINCE_3
        known = {item.name for item in dataclasses.fields(cls)}
        if set(fields) != known:
            unknown, missing = sorted(set(fields) - known), sorted(known - set(fields))
            raise ModelFileError(
                f"{JSON_NAME}: unknown keys {unknown}, missing keys {missing}; copy or convert the file again"
            )
        try:
            spec = PreprocessSpec.from_dict(_expect("preprocess", fields["preprocess"], dict))
        except DataError as error:
            raise ModelFileError(f"{JSON_NAME}: {error}") from error
        reference = ReferenceOutputs.from_dict(fields["reference"]) if fields["reference"] is not None else None
        return cls(**{**fields, "preprocess": spec, "reference": reference, "parents": _pairs(fields["parents"])})

    def logits_of(self, outputs: np.ndarray) -> np.ndarray:
        """What the file computed (..., k) as logits, float32 of the same shape; `probabilities` turns them back."""
        return logits_of(outputs, self.outputs, self.activation)

    @property
    def exclusive(self) -> bool:
        """Whether the labels are classes that exclude one another: each image has exactly one."""
        return self.activation == "softmax"

    def probabilities(self, logits: np.ndarray) -> np.ndarray:
        """Turn logits (..., k) into calibrated probabilities, float32 of the same shape.

        Raises:
            DataError: the last axis does not hold one logit a label.
        """
        logits = np.asarray(logits)
        if logits.shape[-1:] != (len(self.labels),):
            raise DataError(f"expected logits of shape (..., {len(self.labels)}), got {logits.shape}")
        z = logits.astype(np.float64) * self.logit_slope + np.asarray(self.logit_offset)
        return probabilities_of(z, self.activation).astype(np.float32)

    @classmethod
    def from_json(cls, text: str) -> ModelInfo:
        """Build an info from what `to_json` gave.

        Raises:
            ModelFileError: not JSON, or as `from_dict`.
        """
        return cls.from_dict(load_json(text))


def probabilities_of(logits: np.ndarray, activation: str) -> np.ndarray:
    """What a sigmoid, or a softmax over the last axis, makes of logits (..., k): (..., k) in their dtype."""
    # exp of numbers up to 0 only: no overflow warning at extreme logits.
    if activation == "softmax":
        shares = np.exp(logits - logits.max(axis=-1, keepdims=True))
        return np.asarray(shares / shares.sum(axis=-1, keepdims=True))
    small = np.exp(-np.abs(logits))
    return np.asarray(np.where(logits >= 0, 1.0, small) / (1.0 + small))


def logits_of(outputs: np.ndarray, gives: str, activation: str) -> np.ndarray:
    """Outputs (..., k) of a model as logits, float32 of the same shape, which `activation` turns into probabilities.

    Args:
        outputs: what the model computed.
        gives: "logits" or "probabilities": what that is. Probabilities are taken to lie between 1e-7 and 1 - 1e-7,
            where float32 can tell them from 0 and 1.
        activation: one of ACTIVATIONS.
    """
    if gives == "logits":
        return np.asarray(outputs, np.float32)
    share = np.clip(np.asarray(outputs, np.float64), _LEAST_PROBABILITY, 1.0 - _LEAST_PROBABILITY)
    logits = np.log(share)
    return (logits if activation == "softmax" else logits - np.log1p(-share)).astype(np.float32)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _rows(name: str, rows: Any, fits: Any) -> tuple[tuple[Any, ...], ...]:
    """Rows of equal length as tuples, or a ModelFileError that names them."""
    if isinstance(rows, Sequence) and all(isinstance(row, list | tuple) for row in rows):
        lengths = {len(row) for row in rows}
        if len(lengths) <= 1 and all(fits(value) for row in rows for value in row):
            return tuple(tuple(row) for row in rows)
    raise ModelFileError(f"expected {name} of the reference outputs as rows of equal length; {_AGAIN}")


def _pairs(parents: Any) -> dict[str, str]:
    """Parents as version 1 (an object) or version 2 (pairs, in order) stores them, or a ModelFileError."""
    entries = list(parents.items()) if isinstance(parents, dict) else parents
    pairs = isinstance(entries, list) and all(isinstance(pair, list | tuple) and len(pair) == 2 for pair in entries)  # noqa: PLR2004
    if not pairs or not all(isinstance(text, str) for pair in entries for text in pair):
        raise ModelFileError(f"expected parents as pairs of a name and a sha256, got {parents!r}")
    return {name: digest for name, digest in entries}


_TEXTS = (
    *("model_name", "threshold_source", "quant_type", "training_data", "attribution", "intended_use"),
    *("calibration_source", "model_card", "canonical_hash"),
)


def _checked_version(version: Any) -> int:
    """Give the format version back, or raise a ModelFileError unless this code can read it."""
    if isinstance(version, bool) or not isinstance(version, int) or version < 1:
        raise ModelFileError(
            f"{JSON_NAME}: expected format_version as a whole number, got {version!r}; copy or convert the file again"
        )
    if version > FORMAT_VERSION:
        raise ModelFileError(
            f"{JSON_NAME}: has format_version {version}, this cxr_compress reads up to {FORMAT_VERSION}; "
            "upgrade cxr-compress on this machine"
        )
    return version


def _checked_labels(labels: Any) -> tuple[str, ...]:
    """Give the labels as a tuple of distinct one-line texts, or raise a ModelFileError."""
    if not isinstance(labels, list | tuple) or not all(isinstance(label, str) for label in labels):
        raise ModelFileError(f"expected labels as a list of texts, got {labels!r}")
    labels = tuple(labels)
    if (
        not labels
        or len(set(labels)) != len(labels)
        or any(not label or label.splitlines() != [label] for label in labels)
    ):
        raise ModelFileError(f"expected at least one label, all different and of one line, got {labels!r}")
    return labels


def _numbers(name: str, values: Any, count: int) -> tuple[float, ...]:
    """Give `count` finite floats (NumPy scalars welcome), or raise a ModelFileError that names the field."""
    try:
        numbers = tuple(float(value) for value in values)
    except (TypeError, ValueError) as error:
        raise ModelFileError(f"expected {name} as {count} numbers, got {values!r}") from error
    if len(numbers) != count or not all(math.isfinite(number) for number in numbers):
        raise ModelFileError(f"expected {name} as {count} finite numbers (one a label), got {values!r}")
    return numbers


def _expect(name: str, value: Any, kind: type) -> Any:
    """Give the value back if it is of that kind, else raise a ModelFileError that names the field."""
    if not isinstance(value, kind):
        raise ModelFileError(f"expected {name} as {kind.__name__}, got {value!r}")
    return value


def dump_json(document: dict[str, Any]) -> str:
    """JSON text with sorted keys and no NaN, which JSON does not know."""
    try:
        return json.dumps(document, indent=1, sort_keys=True, allow_nan=False) + "\n"
    except (TypeError, ValueError) as error:
        raise ModelFileError(f"the model's metadata is not JSON: {error}") from error


def load_json(text: str) -> dict[str, Any]:
    """Parse a JSON object, or raise a ModelFileError."""
    try:
        document = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ModelFileError(f"{JSON_NAME}: is not JSON: {error}; copy or convert the file again") from error
    if not isinstance(document, dict):
        raise ModelFileError(
            f"{JSON_NAME}: expected a JSON object, got {type(document).__name__}; copy or convert the file again"
        )
    return document
