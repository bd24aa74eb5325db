"""The flags of cxr_compress and the recipe that they ask for."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from absl import flags

from cxr_compress.cli.app import UsageError, reader_options
from cxr_compress.cli.flags import NAMES, augment_ranges, define_augment_flags, define_meaning_flags
from cxr_compress.cli.output import define_overwrite_flag
from cxr_compress.data import DATASETS
from cxr_compress.recipe import (
    ALLOCATIONS,
    CALIBRATION_METHODS,
    CRITERIA,
    NORMALIZERS,
    PATTERNS,
    PRESETS,
    QAT,
    QUANT_TYPES,
    REDUCTIONS,
    SCHEDULES,
    SCOPES,
    THRESHOLD_UNITS,
    Recipe,
    make_recipe,
)

_TEXTS = {
    "input_size": "Height and width of the model's input, pixels; that of --keras_model_file where one is given.",
    "epochs": "Training epochs of the original model.",
    "learning_rate": "Of that training.",
    "batch_size": "Images per training step.",
    "weight_decay": "Of every training, decoupled (AdamW).",
    "label_smoothing": "Of every training: share by which labels move towards 0.5.",
    "criterion": f"How filters are scored: {', '.join(CRITERIA)}. Taylor looks at training images and labels, apoz and "
    "lasso at images, the others at weights; lasso is meant for --scope=local, random is the baseline.",
    "scoring_images": "Training images that taylor, apoz and lasso look at.",
    "group_reduction": f"How the layers of a group combine: {', '.join(REDUCTIONS)}.",
    "normalizer": f"What a group's scores are divided by, so that groups compare: {', '.join(NORMALIZERS)}.",
    "scope": f"{SCOPES[0]} ranks all filters together, {SCOPES[1]} takes the same share of every layer, {SCOPES[2]} "
    "measures what each layer does to the outputs (minutes) and takes first what hurts least for what it saves.",
    "sensitivity_images": "Training images on which that is measured.",
    "round_to": "Pruned layers keep a multiple of this many filters.",
    "min_channels": "No layer keeps fewer filters.",
    "max_removed_fraction": "No layer loses more than this share of its filters.",
    "removal_steps": "In how many steps filters go, scored anew after each.",
    "reconstruction_images": "Training images for --reconstruct.",
    "recalibration_images": "Training images that re-estimate batch norms: between steps, and with --noreconstruct.",
    "recovery_epochs": "Fine-tuning epochs of the pruned model.",
    "recovery_learning_rate": "Of that fine-tuning.",
    "schedule_epochs": "Learning-rate rewinding: the rate follows the end of a schedule of so many epochs; 0: one of "
    "its own.",
    "distill_weight": "Share of every fine-tuning loss that follows the original model instead of the labels.",
    "feature_weight": "Weight of the distance between the last feature maps of the two, 0 for none.",
    "ema_decay": "Of a running average of the weights in fine-tuning, for example 0.99; 0 for none.",
    "weight_sparsity": "Share of the remaining weights to zero, from 0 up to but not 1.",
    "threshold_unit": f"Of --weight_threshold: {', '.join(THRESHOLD_UNITS)} (standard deviations of a layer).",
    "sparsity_allocation": f"How that share spreads over layers: {', '.join(ALLOCATIONS)}.",
    "sparsity_schedule": f"How it grows: {', '.join(SCHEDULES)}.",
    "sparsity_power": "Exponent of polynomial; cubic has 3.",
    "initial_sparsity": "Where polynomial and cubic start.",
    "sparsity_pattern": f"Which weights go together: {', '.join(PATTERNS)}.",
    "sparsity_epochs": "Epochs in which weights are zeroed and the others make up for it.",
    "sparsity_learning_rate": "Of those epochs.",
    "finetune_epochs": "Fine-tuning epochs after that, zeros held.",
    "finetune_learning_rate": "Of those.",
    "calibration_images": "Training images that fix the ranges of an int8 file.",
    "calibration_method": f"How they fix them: {', '.join(CALIBRATION_METHODS)}.",
    "percentile": "Of the values that stay inside a range at either end, for --calibration_method=percentile.",
    "auto_fallback": "Leave so many layers in float, those that int8 hurts most (int8_float_io).",
    "qat": f"Training with the rounding of int8 in the loop: {', '.join(QAT)}; auto: where int8 loses too much on dev.",
    "qat_epochs": "Of that training.",
    "qat_learning_rate": "Of that training.",
    "max_auroc_drop": "How much AUROC compression may cost. Given here, a file that misses it, or that may be worse by "
    "--margin, ends the command with code 3.",
    "margin": "Of non-inferiority: the upper bound of the loss must lie below it.",
    "seed": "Of everything that draws.",
    "threads": "That TensorFlow computes with: part of the recipe, because another number gives other bytes.",
}
_SWITCHES = {
    "allow_missing": "Go on with a part of the images that NIH's list names.",
    "allow_inexact": "Also remove channels that a LayerNormalization takes statistics over.",
    "reconstruct": "Refit the layers that lost inputs by least squares, so that they give again what they gave (on "
    "unless --noreconstruct).",
    "from_scratch": "Baseline: draw the weights of the pruned model anew instead of keeping them.",
    "bias_correction": "Take the mean error that rounding the weights makes out of the biases.",
    "equalize": "Before int8, even out the ranges of the channels of consecutive layers, where that is exact.",
}
_BUDGETS = {
    "target_macs": "Multiply-accumulates that may stay: a fraction such as 0.5, or a number above 1.",
    "target_params": "Parameters that may stay: a fraction such as 0.5, or a number above 1.",
    "target_bytes": "Bytes of the int8 file, metadata included: 1MB, 640kB, 1000000, or a fraction such as 0.25.",
    "target_latency_ms": "Milliseconds per image: a number above 1, or a fraction such as 0.5; see --latency_table.",
}
_FILES = {
    "latency_table": "Layer times that cxr_benchmark --layers measured on a device; without it they are measured here.",
    "probe_pack": "Write a ZIP with which a device makes that table, and stop.",
}
_UNITS = {"KB": 1_000, "MB": 1_000_000}


def define_flags(values: flags.FlagValues) -> None:
    """Define the command's own flags; those of the recipe have no default here, the recipe has."""
    flags.DEFINE_string("model", None, f"Architecture to build: {', '.join(sorted(PRESETS))}.", flag_values=values)
    flags.DEFINE_string("keras_model_file", None, "An original model of yours to start from.", flag_values=values)
    flags.DEFINE_string("dataset", None, f"One of {', '.join(DATASETS)}.", flag_values=values)
    flags.DEFINE_string("data_dir", None, "Where the data set lies; it is only read.", flag_values=values)
    flags.DEFINE_string("output_dir", None, "Where artifacts and report go.", flag_values=values)
    flags.DEFINE_string("recipe", None, "A recipe.json to start from; flags change it.", flag_values=values)
    text = "Of the compressed file; int16x8 is nearly as exact as float and about 30 times slower."
    flags.DEFINE_enum("quant_type", None, QUANT_TYPES, text, flag_values=values)
    flags.DEFINE_boolean(
        "dry_run", False, "Make the plan, say what it will give and take, and stop.", flag_values=values
    )
    flags.DEFINE_boolean("search", False, "Search budgets instead of running one recipe.", flag_values=values)
    flags.DEFINE_list("search_macs", None, "Shares of the MACs to try; by default seven from 0.5.", flag_values=values)
    flags.DEFINE_integer("search_epochs", 1, "Epochs per training while searching.", flag_values=values)
    flags.DEFINE_integer("search_finalists", 3, "Candidates that are recovered in full.", flag_values=values)
    for name, text in _SWITCHES.items():
        flags.DEFINE_boolean(name, None, text, flag_values=values)
    flags.DEFINE_float(
        "weight_threshold",
        None,
        "Instead of --weight_sparsity: zero every weight of smaller magnitude, see --threshold_unit.",
        flag_values=values,
    )
    define_overwrite_flag(values)
    define_augment_flags(values, with_defaults=False)
    define_meaning_flags(values)
    flags.DEFINE_list("options", None, "What the reader of the set takes: name=value,...", flag_values=values)
    flags.DEFINE_list("exclude", None, "Regular expressions of layers that keep all filters.", flag_values=values)
    text = "ROWS,COLUMNS of a block, inputs by outputs, for --sparsity_pattern=block; 1,4 unless given."
    flags.DEFINE_list("sparsity_block", None, text, flag_values=values)
    flags.DEFINE_list(
        "overrides",
        None,
        "Other values of --max_removed_fraction for some layers, for example stem.*=0.2,head/.*=0.0; the last match "
        "counts. An entry with a comma of its own goes in double quotes.",
        flag_values=values,
    )
    defaults = Recipe()
    for name, text in _TEXTS.items():
        define = {int: flags.DEFINE_integer, float: flags.DEFINE_float, str: flags.DEFINE_string}
        define[type(getattr(defaults, name))](name, None, text, flag_values=values)
    for name, text in (_BUDGETS | _FILES).items():
        flags.DEFINE_string(name, None, text, flag_values=values)


def make_recipe_of(values: flags.FlagValues) -> Recipe:
    """The recipe of the flags that were given: a recipe file or the model's preset, with those flags changed.

    Raises:
        CompressionError: flags that contradict one another or values out of range.
    """
    changes = _given(values)
    if values.recipe:
        return _from_file(values, changes)
    if values.model is None and values.keras_model_file is None:
        raise UsageError("expected --model=NAME to train one or --keras_model_file=FILE to start from; got neither")
    if values.model is not None and values.keras_model_file is None and values.model not in PRESETS:
        raise UsageError(
            f"expected a model of {', '.join(sorted(PRESETS))}, got {values.model!r}; any other Keras model comes in "
            "as --keras_model_file"
        )
    if values.dataset is None:
        raise UsageError(f"expected --dataset, one of {', '.join(DATASETS)}; got none")
    if set(_BUDGETS) & set(changes) and "target_macs" not in changes:
        changes["target_macs"] = None
    return make_recipe(values.model or Path(values.keras_model_file).stem, changes)


def _given(values: flags.FlagValues) -> dict[str, Any]:
    """The fields of the recipe that flags give."""
    changes: dict[str, Any] = {
        name: values[name].value
        for name in ("dataset", "quant_type", "exclude", "weight_threshold", *_SWITCHES, *_TEXTS)
        if values[name].value is not None
    }
    changes |= {name: values[name].value for name in NAMES if values[name].present}
    if ranges := augment_ranges(values):
        changes["augment"] = ranges
    changes.update({name: _bound(name, values[name].value) for name in _BUDGETS if values[name].value is not None})
    if values.overrides is not None:
        changes["overrides"] = dict(map(_override, values.overrides))
    if values.sparsity_block is not None:
        changes["sparsity_block"] = _block(values.sparsity_block)
    if values.options is not None:
        changes["options"] = reader_options(values.options)
    if "weight_threshold" in changes:
        changes.setdefault("weight_sparsity", 0.0)
    return changes


def _from_file(values: flags.FlagValues, changes: dict[str, Any]) -> Recipe:
    """The recipe of a file, with the given flags changed."""
    path = Path(values.recipe)
    if not path.is_file():
        raise UsageError(f"expected --recipe to be a file, got {values.recipe!r}")
    # What is no text is no JSON either, which is then said.
    kept = Recipe.from_json(path.read_text(encoding="utf-8", errors="replace")).to_dict()
    if "augment" in changes:  # a flag each: those that are not given stay
        changes = {**changes, "augment": {**kept["augment"], **changes["augment"]}}
    merged = {**kept, **changes}
    return Recipe.from_json(json.dumps(merged))


def _block(sides: list[str]) -> list[int]:
    if not all(side.isdigit() for side in sides):
        raise UsageError(f"expected --sparsity_block as ROWS,COLUMNS, for example 1,4; got {','.join(sides)!r}")
    return [int(side) for side in sides]


def _override(text: str) -> tuple[str, float]:
    """Read conv.*=0.5; the pattern may hold further equals signs."""
    pattern, equals, share = text.rpartition("=")
    try:
        if pattern and equals:
            return pattern, float(share)
    except ValueError:
        pass
    raise UsageError(f"expected --overrides as REGEX=FRACTION, for example stem.*=0.2; got {text!r}")


def _bound(name: str, text: str) -> float | None:
    """Read 0.5 as a fraction, 1000000 as a number, 1MB as a number of bytes and none as no bound."""
    if text.lower() == "none":
        return None
    try:
        if name == "target_bytes" and text[-2:].upper() in _UNITS:
            return round(float(text[:-2]) * _UNITS[text[-2:].upper()])
        return int(text) if text.isdigit() else float(text)
    except ValueError:
        raise UsageError(f"expected --{name} as a fraction such as 0.5 or a whole number, got {text!r}") from None
