"""What a model file says about itself beyond layers and weights: its findings, its input, where it comes from."""

from __future__ import annotations

import dataclasses
import json
import math
from dataclasses import dataclass
from typing import Any

from cxr_compress.device.image_checks import ImageStatistics
from cxr_compress.device.spec import PreprocessSpec
from cxr_compress.errors import DataError, ModelFileError
from cxr_compress.metrics.answers import AnswerStatistics

ABOUT_ENTRY = "cxr_compress.json"  # the entry of a .keras archive; Keras reads its own entries by name and no other
_ACTIVATIONS = ("sigmoid", "softmax")
LARGEST_ABOUT = 1 << 20  # bytes: 18 findings take 2 kB, and a bomb takes more than this


@dataclass(frozen=True)
class ModelAbout:
    """What travels inside a .keras file, so that evaluation, export and the device use the model as it was trained.

    Attributes:
        findings: one name per logit, in the order of the logits.
        preprocess: how an image becomes the model's input.
        dataset: what the model was trained on ("" where unknown).
        attribution: whom to name with every copy: authors and license of data and weights.
        pos_weight: the weight of positives in the loss, one per finding; None where the loss had none.
        images: how bright the training images were and how far they spread; None where it was not noted.
        notes: anything else a user should know, such as thresholds that came with foreign weights.
        activation: what turns the model's logits into probabilities: "sigmoid", each finding by itself, or "softmax",
            one for all classes, which exclude one another.
        positive: of a model that gives two such classes, the index of the one that is the finding; None where that is
            not said, or there are other than two.
        thresholds: on the probabilities, the class weights of the loss undone; None where none were chosen.
        answers: what the model said of images that it was trained on; None where it was not noted.
    """

    findings: tuple[str, ...]
    preprocess: PreprocessSpec
    dataset: str = ""
    attribution: str = ""
    pos_weight: tuple[float, ...] | None = None
    notes: str = ""
    images: ImageStatistics | None = None
    activation: str = "sigmoid"
    positive: int | None = None
    thresholds: tuple[float, ...] | None = None
    answers: AnswerStatistics | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "findings", _names(self.findings))
        if not isinstance(self.preprocess, PreprocessSpec):
            raise DataError(f"ModelAbout: expected preprocess as a PreprocessSpec, got {self.preprocess!r}")
        if self.images is not None and not isinstance(self.images, ImageStatistics):
            raise DataError(f"ModelAbout: expected images as ImageStatistics, got {self.images!r}")
        for name in ("dataset", "attribution", "notes"):
            if not isinstance(getattr(self, name), str):
                raise DataError(f"ModelAbout: expected {name} as a text, got {getattr(self, name)!r}")
        if self.activation not in _ACTIVATIONS:
            raise DataError(f"ModelAbout: expected activation sigmoid or softmax, got {self.activation!r}")
        if self.positive not in (None, 0, 1) or isinstance(self.positive, bool):
            raise DataError(f"ModelAbout: expected positive as 0 or 1, which of two classes, got {self.positive!r}")
        if self.pos_weight is not None:
            object.__setattr__(self, "pos_weight", _weights(self.pos_weight, len(self.findings)))
        if self.thresholds is not None:
            object.__setattr__(self, "thresholds", _thresholds(self.thresholds, len(self.findings)))
        if self.answers is not None and len(self.answers.mean) != len(self.findings):
            raise DataError(f"ModelAbout: expected answers of {len(self.findings)} findings, got {self.answers!r}")

    def weights_of(self, positive: int | None) -> tuple[float, ...] | None:
        """The weights in the loss, one per logit; None where the file names none.

        Args:
            positive: which of two exclusive classes became the one logit: a loss that counts them w0 and w1 times
                teaches a difference of logits that is log(w1 / w0) too high.
        """
        if self.pos_weight is None or positive is None or len(self.pos_weight) == 1:
            return self.pos_weight
        return (self.pos_weight[positive] / self.pos_weight[1 - positive],)

    def to_dict(self) -> dict[str, Any]:
        """Give the fields as JSON-ready values."""
        later: dict[str, Any] = {} if self.images is None else {"images": self.images.to_dict()}
        # Left out at their usual values, so that files made before and since are equal.
        later |= {} if self.activation == "sigmoid" else {"activation": self.activation}
        later |= {} if self.positive is None else {"positive": self.positive}
        later |= {} if self.thresholds is None else {"thresholds": list(self.thresholds)}
        later |= {} if self.answers is None else {"answers": self.answers.to_dict()}
        return {
            "findings": list(self.findings),
            "preprocess": self.preprocess.to_dict(),
            "dataset": self.dataset,
            "attribution": self.attribution,
            "pos_weight": None if self.pos_weight is None else list(self.pos_weight),
            "notes": self.notes,
            **later,
        }

    @classmethod
    def from_dict(cls, fields: dict[str, Any]) -> ModelAbout:
        """Build what `to_dict` gave.

        Raises:
            DataError: an unknown or missing key, or a value out of range.
        """
        fields = {"images" if name == "films" else name: value for name, value in fields.items()}  # its former name
        known = {field.name for field in dataclasses.fields(cls)}
        unknown = sorted(set(fields) - known)
        if unknown:
            raise DataError(f"ModelAbout: unknown keys {unknown}; known are {sorted(known)}")
        missing = sorted({"findings", "preprocess"} - set(fields))
        if missing:
            raise DataError(f"ModelAbout: missing keys {missing}")
        if not isinstance(fields["preprocess"], dict):
            raise DataError(f"ModelAbout: expected preprocess as an object, got {fields['preprocess']!r}")
        images = fields.get("images")
        own: dict[str, Any] = {"images": None if images is None else ImageStatistics.from_dict(images)}
        own["answers"] = AnswerStatistics.from_dict(fields["answers"]) if fields.get("answers") else None
        return cls(**{**fields, **own, "preprocess": PreprocessSpec.from_dict(fields["preprocess"])})

    def to_bytes(self) -> bytes:
        """Give JSON of equal bytes for equal values, as it lies in a model file."""
        return json.dumps(self.to_dict(), indent=1, sort_keys=True, allow_nan=False).encode("utf-8")

    @classmethod
    def from_bytes(cls, content: bytes, file: str) -> ModelAbout:
        """Read what `to_bytes` gave.

        Args:
            content: of the entry.
            file: name of the model file, for the error.

        Raises:
            ModelFileError: it is no such JSON, or has unknown keys.
        """
        try:
            fields = json.loads(content)
            if not isinstance(fields, dict):
                raise DataError(f"ModelAbout: expected an object, got {type(fields).__name__}")
            return cls.from_dict(fields)
        except (DataError, ValueError, TypeError, RecursionError) as error:
            raise ModelFileError(
                f"{file} does not say what its model is for ({_one_line(error)}): save the model again"
            ) from error


def _one_line(error: BaseException, limit: int = 200) -> str:
    return " ".join(str(error).split())[:limit] or type(error).__name__


def _names(values: Any) -> tuple[str, ...]:
    """Give findings as a tuple of different texts, or raise a DataError."""
    if isinstance(values, str) or not isinstance(values, tuple | list):
        raise DataError(f"ModelAbout: expected findings as a list of names, got {values!r}")
    names = tuple(values)
    if not names or not all(isinstance(name, str) and name for name in names):
        raise DataError(f"ModelAbout: expected findings as a list of at least one name, got {list(names)!r}")
    if len(set(names)) != len(names):
        twice = sorted({name for name in names if names.count(name) > 1})
        raise DataError(f"ModelAbout: the findings {twice} stand there twice: give each logit a name of its own")
    return names


def _weights(values: Any, count: int) -> tuple[float, ...]:
    """Give weights as `count` finite floats above 0, or raise a DataError."""
    try:
        weights = tuple(float(value) for value in values)
    except (TypeError, ValueError) as error:
        raise DataError(f"ModelAbout: expected pos_weight as {count} numbers, got {values!r}") from error
    if len(weights) != count or not all(math.isfinite(weight) and weight > 0 for weight in weights):
        raise DataError(f"ModelAbout: expected pos_weight as {count} finite numbers above 0, got {list(weights)}")
    return weights


def _thresholds(values: Any, count: int) -> tuple[float, ...]:
    """Give thresholds as `count` numbers from 0 to 1, or raise a DataError."""
    try:
        thresholds = tuple(float(value) for value in values)
    except (TypeError, ValueError) as error:
        raise DataError(f"ModelAbout: expected thresholds as {count} numbers, got {values!r}") from error
    if len(thresholds) != count or not all(0 <= value <= 1 for value in thresholds):
        raise DataError(f"ModelAbout: expected thresholds as {count} numbers from 0 to 1, got {list(thresholds)}")
    return thresholds
