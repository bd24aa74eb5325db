"""One compression run as data: every choice that decides its result, and nothing that does not (no paths, no times)."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, replace
from typing import Any

from cxr_compress.errors import CompressionError

RECIPE_FORMAT = 1


@dataclass(frozen=True)
class Recipe:
    """The choices of one run; together with the data and the seed they fix the bytes of its files.

    Attributes:
        model: the architecture to build, or the name to give a model that comes from a file.
        dataset: kermany, nih or phantom.
        input_size: height and width of the model's input, pixels.
        epochs: training epochs of the uncut model; not used when the model comes from a file.
        learning_rate: of that training.
        batch_size: films per step in every training.
        dev_fraction: share of the training patients set aside for every choice.
        allow_missing: go on with a part of the images that the set's official list names (nih only).
        target_macs: MACs that may stay: a float up to 1.0 is a fraction, a larger number absolute; None for no bound.
        target_params: the same for parameters.
        criterion: how filters are scored ("l1", "l2", "geometric_median", "bn_scale", "random"); those that need films
            with labels are for library use so far.
        scope: "global" ranks all filters together, "local" takes the same share of every layer.
        round_to: layers that lose filters keep a multiple of this.
        max_removed_fraction: no layer loses more than this share of its filters.
        exclude: regular expressions of layers that keep all their filters.
        removal_steps: in how many steps filters go; after each the batch norms are re-estimated and all scored anew.
        recalibration_images: training films that re-estimate the batch norms of the thinned model.
        recovery_epochs: fine-tuning epochs of the thinned model.
        recovery_learning_rate: of that fine-tuning.
        distill_weight: share of the fine-tuning loss that pulls towards the uncut model instead of the labels.
        weight_sparsity: share of the remaining weights to set to zero, in [0, 1).
        sparsity_epochs: epochs in which they go and the others make up for it.
        sparsity_learning_rate: of those epochs.
        quant_type: of the compressed file.
        calibration_images: training films that fix the ranges of an int8 file.
        bootstrap_samples: resamples of patients behind each confidence interval.
        seed: of everything that draws.
    """

    model: str = "tiny_chexnet"
    dataset: str = "kermany"
    input_size: int = 64
    epochs: int = 10
    learning_rate: float = 2e-3
    batch_size: int = 32
    dev_fraction: float = 0.1
    allow_missing: bool = False
    target_macs: float | None = 0.5
    target_params: float | None = None
    criterion: str = "l1"
    scope: str = "global"
    round_to: int = 8
    max_removed_fraction: float = 0.75
    exclude: tuple[str, ...] = ()
    removal_steps: int = 1
    recalibration_images: int = 512
    recovery_epochs: int = 4
    recovery_learning_rate: float = 1e-3
    distill_weight: float = 0.5
    weight_sparsity: float = 0.5
    sparsity_epochs: int = 4
    sparsity_learning_rate: float = 5e-4
    quant_type: str = "int8"
    calibration_images: int = 128
    bootstrap_samples: int = 1000
    seed: int = 0

    def __post_init__(self) -> None:
        """Check what no later stage can check better.

        Raises:
            CompressionError: a value outside its range.
        """
        counts = ("input_size", "epochs", "batch_size", "round_to", "removal_steps")
        for name in (*counts, "recalibration_images", "calibration_images"):
            _require(getattr(self, name) >= 1, name, "1 or more", getattr(self, name))
        for name in ("recovery_epochs", "sparsity_epochs"):
            _require(getattr(self, name) >= 0, name, "0 or more", getattr(self, name))
        _require(0 <= self.weight_sparsity < 1, "weight_sparsity", "in [0, 1)", self.weight_sparsity)
        if self.weight_sparsity:
            _require(self.sparsity_epochs >= 1, "sparsity_epochs", "1 or more to zero weights", self.sparsity_epochs)

    @property
    def removes_filters(self) -> bool:
        """Whether a budget asks for a thinner model."""
        return any(bound is not None and bound != 1.0 for bound in (self.target_macs, self.target_params))

    @property
    def name(self) -> str:
        """What the compressed model is called: tiny_chexnet_m50_w50_int8 = half the MACs, half the weights zero."""
        parts = [self.model]
        if self.target_macs is not None and self.target_macs != 1.0:
            parts.append("m" + _short(self.target_macs))
        if self.target_params is not None and self.target_params != 1.0:
            parts.append("p" + _short(self.target_params))
        if self.weight_sparsity:
            parts.append("w" + _short(self.weight_sparsity))
        return "_".join([*parts, self.quant_type])

    def to_dict(self) -> dict[str, Any]:
        """The fields and the format, ready for JSON."""
        return {"format": RECIPE_FORMAT, **asdict(self), "exclude": list(self.exclude)}

    def to_json(self) -> str:
        """The recipe as a JSON text."""
        return json.dumps(self.to_dict(), indent=2) + "\n"

    @classmethod
    def from_json(cls, text: str) -> Recipe:
        """The inverse of `to_json`.

        Raises:
            CompressionError: not a recipe, an unknown key, or one of a newer format.
        """
        try:
            values = json.loads(text)
        except ValueError as error:
            raise CompressionError(f"expected a recipe as JSON; could not read it: {error}") from error
        if not isinstance(values, dict) or values.pop("format", None) != RECIPE_FORMAT:
            raise CompressionError(f'expected a recipe with "format": {RECIPE_FORMAT}; see the recipe.json of a run')
        return _changed(cls(), values)


# What suits each architecture on two cores. Narrow layers cannot be thinned in steps of 8.
PRESETS: dict[str, dict[str, Any]] = {
    "tiny_chexnet": {"round_to": 4},
    "chexnet": {
        "input_size": 112,
        "batch_size": 16,
        "epochs": 5,
        "learning_rate": 1e-3,
        "recovery_epochs": 2,
        "recovery_learning_rate": 3e-4,
        "sparsity_epochs": 2,
        "sparsity_learning_rate": 2e-4,
    },
}


def make_recipe(model: str, changes: Mapping[str, Any]) -> Recipe:
    """The recipe that suits an architecture, with the given fields changed.

    Raises:
        CompressionError: an unknown field, or a value outside its range.
    """
    return _changed(replace(Recipe(model=model), **PRESETS.get(model, {})), changes)


def _changed(recipe: Recipe, changes: Mapping[str, Any]) -> Recipe:
    known = {field.name for field in fields(Recipe)}
    unknown = sorted(set(changes) - known)
    if unknown:
        raise CompressionError(f"unknown in a recipe: {', '.join(unknown)}; known are {', '.join(sorted(known))}")
    values = dict(changes)
    if "exclude" in values:
        values["exclude"] = tuple(values["exclude"])
    try:
        return replace(recipe, **values)
    except TypeError as error:
        raise CompressionError(f"a value in the recipe has the wrong type: {error}") from error


def _short(bound: float) -> str:
    """0.5 -> 50, 0.125 -> 12.5, 1200000 -> 1200000."""
    return f"{bound * 100:g}" if isinstance(bound, float) and bound <= 1 else str(int(bound))


def _require(holds: bool, name: str, expected: str, value: object) -> None:
    if not holds:
        raise CompressionError(f"expected {name} to be {expected}; got {value}")
