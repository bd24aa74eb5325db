"""One compression run as data: a recipe of sections, read from and written to JSON, and what suits each architecture.

Format 2 is nested, `{"format": 2, "removal": {"criterion": "l1", "budget": {"macs": 0.5}}}`; what is left out has its
default. Format 1, of earlier versions, had one flat key a choice, named like the flag; it is still read.
"""

from __future__ import annotations

import dataclasses
import difflib
import json
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import Any

from cxr_compress.errors import CompressionError
from cxr_compress.recipe.fields import SECTIONS, Section, all_entries, find_entry, subsections_of
from cxr_compress.recipe.sections import (
    BUILT_IN,
    DataSection,
    ExportSection,
    GateSection,
    ModelSection,
    RecoverySection,
    RemovalSection,
    RunSection,
    SparsitySection,
    TrainingSection,
)

RECIPE_FORMAT = 2
_FLAT_FORMAT = 1
# Keys of format 1 whose flag has another name now.
_RENAMED = {"threads": "num_threads"}
# Keys of format 1 of what no run does any more, with the value that asks for nothing.
_RETIRED = {"equalize": False, "bias_correction": False}
# A table of format 1 -> what the flags of its keys begin with.
_PREFIXES = {"augment": "augment_"}

# What suits each architecture on two cores, by flag. Narrow layers cannot lose filters in steps of 8.
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


@dataclass(frozen=True)
class Recipe:
    """The choices of one run; together with the data they fix the bytes of its files.

    Attributes:
        model: the original model.
        data: the data set.
        training: training of the original model.
        removal: removal of filters.
        recovery: repair and fine-tuning of the pruned model.
        sparsity: zeroing of weights.
        export: the .tflite file.
        gate: what the file may lose.
        run: seed, threads, force.
        plugins: sections that plug-ins registered, by name; those that are not given have their defaults.
    """

    model: ModelSection = field(default_factory=ModelSection)
    data: DataSection = field(default_factory=DataSection)
    training: TrainingSection = field(default_factory=TrainingSection)
    removal: RemovalSection = field(default_factory=RemovalSection)
    recovery: RecoverySection = field(default_factory=RecoverySection)
    sparsity: SparsitySection = field(default_factory=SparsitySection)
    export: ExportSection = field(default_factory=ExportSection)
    gate: GateSection = field(default_factory=GateSection)
    run: RunSection = field(default_factory=RunSection)
    plugins: Mapping[str, Section] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Check what concerns more than one section.

        Raises:
            CompressionError: a bound on bytes of a file that is not int8, or a section that nobody registered.
        """
        if self.removal.budget.tflite_bytes is not None:
            expected = "one of int8, int8_float_io with target_bytes, which counts the bytes of int8 files"
            self.export.require(self.export.quantizes, "quant_type", expected)
        for name in self.plugins:
            _section_class(name)
        added = {name: section for name, section in SECTIONS.items() if name not in BUILT_IN}
        plugins = {name: self.plugins[name] if name in self.plugins else made() for name, made in added.items()}
        object.__setattr__(self, "plugins", plugins)

    def section(self, name: str) -> Section:
        """A section by its name, a plug-in's too.

        Raises:
            CompressionError: no recipe has it.
        """
        if name in self.plugins:
            return self.plugins[name]
        _section_class(name)
        return getattr(self, name)

    def value(self, flag: str) -> Any:
        """What a field holds, by the name of its flag.

        Raises:
            CompressionError: no recipe has it.
        """
        section, *keys = find_entry(flag).path.split(".")
        found: Any = self.section(section)
        for key in keys:
            found = getattr(found, key)
        return found

    def by_flag(self) -> dict[str, Any]:
        """All values, by the names of their flags."""
        return {entry.flag: self.value(entry.flag) for entry in all_entries()}

    def with_values(self, **changes: Any) -> Recipe:
        """A copy with other values, by the names of their flags: `recipe.with_values(target_macs=0.25)`.

        Raises:
            CompressionError: an unknown flag, a value of the wrong type or out of bounds.
        """
        nested: dict[str, Any] = {}
        for flag, value in changes.items():
            *place, key = find_entry(flag).path.split(".")
            table = nested
            for name in place:
                table = table.setdefault(name, {})
            table[key] = value
        return self._replaced({name: _replaced(self.section(name), changed) for name, changed in nested.items()})

    @property
    def name(self) -> str:
        """What the compressed model is called: tiny_chexnet_m50_w50_int8 = half the MACs, half the weights zero.

        h1sd instead of w50: all weights below one standard deviation of their layer.
        """
        letters = {"macs": "m", "params": "p", "tflite_bytes": "b", "latency_ms": "t"}
        bounds, sparsity = self.removal.budget.bounds, self.sparsity
        parts = [self.model.name, *(letters[name] + _short(bound) for name, bound in bounds.items())]
        if sparsity.fraction:
            parts.append("w" + _short(sparsity.fraction))
        if sparsity.threshold is not None:
            parts.append(f"h{sparsity.threshold:g}" + ("sd" if sparsity.threshold_unit == "std" else ""))
        if self.recovery.from_scratch:
            parts.append("scratch")
        return "_".join([*parts, self.export.quant_type])

    def to_dict(self) -> dict[str, Any]:
        """All values and the format, ready for JSON."""
        return {"format": RECIPE_FORMAT, **{name: self.section(name).to_dict() for name in SECTIONS}}

    def to_json(self) -> str:
        """The recipe as a JSON text."""
        return json.dumps(self.to_dict(), indent=2) + "\n"

    @classmethod
    def from_dict(cls, values: Any) -> Recipe:
        """The recipe that `to_dict` gave, or one of format 1; what is left out has its default.

        Raises:
            CompressionError: not a recipe, another format, an unknown section or key, or a value that cannot be.
        """
        if not isinstance(values, Mapping) or "format" not in values:
            raise CompressionError(
                f'expected a recipe with "format": {RECIPE_FORMAT}; see the recipe.json in the folder of a run'
            )
        content = {name: value for name, value in values.items() if name != "format"}
        if values["format"] == _FLAT_FORMAT:
            return cls().with_values(**_by_flag(content))
        if values["format"] != RECIPE_FORMAT:
            raise CompressionError(
                f"this version reads recipes of format {_FLAT_FORMAT} and {RECIPE_FORMAT}; got format "
                f"{values['format']!r}: update cxr-compress"
            )
        sections = {name: _section_class(name).from_dict(value) for name, value in content.items()}
        return cls()._replaced(sections)

    @classmethod
    def from_json(cls, text: str) -> Recipe:
        """The inverse of `to_json`.

        Raises:
            CompressionError: as `from_dict`, or no JSON.
        """
        try:
            values = json.loads(text)
        except ValueError as error:
            raise CompressionError(f"expected a recipe as JSON; could not read it: {error}") from error
        return cls.from_dict(values)

    def _replaced(self, sections: Mapping[str, Section]) -> Recipe:
        own: dict[str, Any] = {name: section for name, section in sections.items() if name in BUILT_IN}
        others = {name: section for name, section in sections.items() if name not in BUILT_IN}
        return dataclasses.replace(self, **own, plugins={**self.plugins, **others})


def make_recipe(model: str, changes: Mapping[str, Any]) -> Recipe:
    """The recipe that suits an architecture, with other values by the names of their flags.

    Raises:
        CompressionError: an unknown flag, or a value that its field cannot hold.
    """
    return without_labels(Recipe().with_values(**{"model": model, **PRESETS.get(model, {}), **changes}), changes)


def is_labeled(recipe: Recipe) -> bool:
    """Whether the images of a recipe's data set have labels, as far as a reader of that name is known."""
    from cxr_compress.data import DATASETS  # loaded when it is asked for, as it brings OpenCV

    reader = DATASETS.get(recipe.data.dataset)
    return reader is None or reader.labeled


# How training keeps what the refit of a pruned model found, on a few hundred images without labels: measured by
# experiments/recovery.py. Usual rates move weights by more than the refit did.
_KEEPS_REFIT: dict[str, Any] = {
    "distill_loss": "logits",
    "recovery_batch_norm": "hold",
    "recovery_learning_rate": 3e-5,
    "sparsity_learning_rate": 1e-4,
}
# What is measured with labels, and what takes its place without them.
_WITH_LABELS, _WITHOUT_LABELS = ("max_auroc_drop", "margin"), ("max_flips", "max_logit_distance")


def without_labels(recipe: Recipe, given: Collection[str], *, settled: bool = False) -> Recipe:
    """A recipe as it suits its data set: without labels all training follows the original model alone, in small steps.

    There `recovery_epochs=0` means no training at all: weights are zeroed, and int8 trained, only where that was given.

    Args:
        recipe: the choices.
        given: flags that somebody chose; the others may be changed here.
        settled: it was made for such images before, so that `given` is only checked.

    Raises:
        CompressionError: a flag was given that means nothing for the data set.
    """
    labeled, name = is_labeled(recipe), recipe.data.dataset
    meaningless, instead = (_WITHOUT_LABELS, _WITH_LABELS) if labeled else (_WITH_LABELS, _WITHOUT_LABELS)
    for flag in sorted(set(meaningless) & set(given)):
        raise CompressionError(
            f"--{flag} is for images {'without' if labeled else 'with'} labels, which --dataset={name} "
            f"{'has' if labeled else 'has not'}: give {' or '.join(f'--{other}' for other in instead)}"
        )
    if labeled:
        return recipe
    if "distill_weight" in given and recipe.recovery.distill_weight != 1:
        raise CompressionError(
            f"--distill_weight={recipe.recovery.distill_weight:g} leaves a share of the loss to labels, which "
            f"--dataset={name} has not: leave it out (1: the original model alone)"
        )
    if settled:
        return recipe
    usual = Recipe().with_values(**PRESETS.get(recipe.model.name, {}))
    changes: dict[str, Any] = {"distill_weight": 1.0}
    if not recipe.recovery.from_scratch:  # a baseline with nothing to keep
        changes |= {
            flag: value
            for flag, value in _KEEPS_REFIT.items()
            if flag not in given and recipe.value(flag) == usual.value(flag)
        }
    if not recipe.recovery.epochs:
        if not {"weight_sparsity", "weight_threshold", "sparsity_pattern"} & set(given):
            changes["weight_sparsity"] = 0.0
        if "qat" not in given:
            changes["qat"] = "never"
    return recipe.with_values(**changes)


def _replaced(section: Any, changes: Mapping[str, Any]) -> Any:
    inner = subsections_of(type(section))
    made = {key: _replaced(getattr(section, key), value) if key in inner else value for key, value in changes.items()}
    return dataclasses.replace(section, **made)


def _section_class(name: str) -> type[Section]:
    """The class of a section.

    Raises:
        CompressionError: nobody registered it; names the nearest, or where a key of that name stands.
    """
    if name in SECTIONS:
        return SECTIONS[name]
    place = next((entry.path for entry in all_entries() if name in (entry.key, entry.flag)), "")
    close = difflib.get_close_matches(name, SECTIONS, n=1)
    if place or close:
        hint = f": did you mean {place or close[0]}?"
    else:
        hint = f"; it has {', '.join(SECTIONS)}; import the plug-in first where one brings it"
    raise CompressionError(f"unknown section {name!r} in the recipe{hint}")


def _by_flag(values: Mapping[str, Any]) -> dict[str, Any]:
    """The flat keys of format 1 by the flags of today.

    Raises:
        CompressionError: a key asks for what no run does any more, or a table is none.
    """
    found: dict[str, Any] = {}
    for key, value in values.items():
        if key in _RETIRED:
            if value != _RETIRED[key]:
                raise CompressionError(
                    f"the recipe asks for {key}, which this version no longer does: set "
                    f'"{key}" to {json.dumps(_RETIRED[key])} or leave it out'
                )
        elif key in _PREFIXES:
            if not isinstance(value, Mapping):
                raise CompressionError(f"expected {key} of the recipe to be a table of name and number; got {value!r}")
            found |= {_PREFIXES[key] + name: _flat_range(name, size) for name, size in value.items()}
        else:
            found[_RENAMED.get(key, key)] = value
    return found


def _flat_range(name: str, size: Any) -> Any:
    """The range of one augmentation; format 1 had mirror as a number."""
    return bool(size) if name == "mirror" else size


def _short(bound: float) -> str:
    """0.5 -> 50, 0.125 -> 12.5, 1200000 -> 1200000, 7.5 -> 7.5."""
    if isinstance(bound, float) and bound <= 1:
        return f"{bound * 100:g}"
    return str(int(bound)) if bound == int(bound) else f"{bound:g}"
