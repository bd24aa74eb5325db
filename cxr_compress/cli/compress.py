"""Compress a chest X-ray model into a small .tflite and say what that did to every finding.

    cxr_compress --model=tiny_chexnet --dataset=kermany --data_dir=chest_xray --output_dir=run
    cxr_compress --keras_model_file=base.keras --input_size=224 --dataset=nih --data_dir=nih --output_dir=run

Trains the model (or loads yours), removes filters down to the budget, refits what is left without labels, fine-tunes,
zeroes weights, quantises, converts, and scores the uncut float file, its int8 twin and the compressed file once on the
test split, through the code that runs on the device. Budgets on MACs, parameters, bytes and milliseconds may be
combined: all hold. Every stage leaves its artefact in the output folder; the same command again goes on where it was
stopped. Exit codes: 0 done, 2 wrong flag, data or model, 130 Ctrl-C.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from absl import flags

from cxr_compress.cli.common import EXIT_OK, UsageError, run_command
from cxr_compress.cli.quiet import quiet_native_stderr
from cxr_compress.data import DATASETS
from cxr_compress.recipe import CRITERIA, NORMALIZERS, PRESETS, REDUCTIONS, SCOPES, Recipe, make_recipe

NAME = "cxr_compress"
_SECONDS_BETWEEN_LINES = 10
_GO_ON = "finished epochs and stages are kept; the same command goes on from there"

_TEXTS = {
    "input_size": "Height and width of the model's input, pixels.",
    "epochs": "Training epochs of the uncut model.",
    "learning_rate": "Of that training.",
    "batch_size": "Films per training step.",
    "criterion": f"How filters are scored: {', '.join(CRITERIA)}. Taylor looks at training films and labels, apoz and "
    "lasso at films, the others at weights; lasso is meant for --scope=local, random is the baseline.",
    "scoring_images": "Training films that taylor, apoz and lasso look at.",
    "group_reduction": f"How the layers of a group combine: {', '.join(REDUCTIONS)}.",
    "normalizer": f"What a group's scores are divided by, so that groups compare: {', '.join(NORMALIZERS)}.",
    "scope": f"{SCOPES[0]} ranks all filters together, {SCOPES[1]} takes the same share of every layer, {SCOPES[2]} "
    "measures what each layer does to the outputs (minutes) and takes first what hurts least for what it saves.",
    "sensitivity_images": "Training films on which that is measured.",
    "round_to": "Thinned layers keep a multiple of this many filters.",
    "min_channels": "No layer keeps fewer filters.",
    "max_removed_fraction": "No layer loses more than this share of its filters.",
    "removal_steps": "In how many steps filters go, scored anew after each.",
    "reconstruction_images": "Training films for --reconstruct.",
    "recalibration_images": "Training films that re-estimate batch norms: between steps, and with --noreconstruct.",
    "recovery_epochs": "Fine-tuning epochs of the thinned model.",
    "recovery_learning_rate": "Of that fine-tuning.",
    "distill_weight": "Share of the fine-tuning loss that follows the uncut model instead of the labels.",
    "weight_sparsity": "Share of the remaining weights to zero, from 0 up to but not 1.",
    "sparsity_epochs": "Epochs in which weights are zeroed and the others make up for it.",
    "sparsity_learning_rate": "Of those epochs.",
    "calibration_images": "Training films that fix the ranges of an int8 file.",
    "seed": "Of everything that draws.",
}
_SWITCHES = {
    "allow_missing": "Go on with a part of the images that NIH's list names.",
    "allow_inexact": "Also remove channels that a LayerNormalization takes statistics over.",
    "reconstruct": "Refit the layers that lost inputs by least squares, so that they give again what they gave (on "
    "unless --noreconstruct).",
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
_AFTER_PROBES = (
    "wrote {pack}: on the device run  cxr_benchmark --layers={name} --output_file=table.json  and give this command "
    "--latency_table=table.json instead of --probe_pack"
)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; `argv` without the program name."""
    return run_command(NAME, __doc__, _define_flags, _run, argv)


def _define_flags(values: flags.FlagValues) -> None:
    """Define the command's own flags; those of the recipe have no default here, the recipe has."""
    flags.DEFINE_string("model", None, f"Architecture to build: {', '.join(sorted(PRESETS))}.", flag_values=values)
    flags.DEFINE_string("keras_model_file", None, "An uncut model of yours to start from.", flag_values=values)
    flags.DEFINE_string("dataset", None, f"One of {', '.join(DATASETS)}.", flag_values=values)
    flags.DEFINE_string("data_dir", None, "Where the data set lies; it is only read.", flag_values=values)
    flags.DEFINE_string("output_dir", None, "Where artefacts and report go.", flag_values=values)
    flags.DEFINE_string("recipe", None, "A recipe.json to start from; flags change it.", flag_values=values)
    flags.DEFINE_enum(
        "quant_type",
        None,
        ["none", "fp16", "dynamic", "int8", "int8_float_io"],
        "Of the compressed file.",
        flag_values=values,
    )
    for name, text in _SWITCHES.items():
        flags.DEFINE_boolean(name, None, text, flag_values=values)
    flags.DEFINE_list("exclude", None, "Regular expressions of layers that keep all filters.", flag_values=values)
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


def _run(values: flags.FlagValues, arguments: list[str]) -> int:
    """Check the flags before anything slow is imported, then run."""
    if arguments:
        raise UsageError(f"expected flags only, got {arguments[0]!r}")
    recipe = make_recipe_of(values)
    for name in ("data_dir", "output_dir"):
        if not values[name].value:
            raise UsageError(f"expected --{name}=FOLDER, got none")
    if not Path(values.data_dir).exists():
        raise UsageError(f"expected --data_dir to exist, got {values.data_dir!r}")
    for name in ("keras_model_file", "latency_table"):
        if values[name].value and not Path(values[name].value).is_file():
            raise UsageError(f"expected --{name} to be a file, got {values[name].value!r}")
    if values.latency_table and recipe.target_latency_ms is None:
        raise UsageError("--latency_table is for a bound on latency: give --target_latency_ms too")
    with quiet_native_stderr(NAME, enabled=not values.debug) as say:
        # Here and not above: TensorFlow takes seconds to load, and a wrong flag or --help should not wait for it.
        from cxr_compress.pipeline import read_latency_table, run_recipe, write_probe_pack

        progress = _Progress(say)
        shared: dict[str, Any] = {
            "data_dir": Path(values.data_dir),
            "output_dir": Path(values.output_dir),
            "keras_model_file": Path(values.keras_model_file) if values.keras_model_file else None,
            "news": progress.tell,
            "decoding": progress.decoding,
        }
        try:
            if values.probe_pack:
                pack = Path(values.probe_pack)
                write_probe_pack(recipe, pack, **shared)
                say(_AFTER_PROBES.format(pack=pack, name=pack.name))
                return EXIT_OK
            table = read_latency_table(values.latency_table) if values.latency_table else None
            report = run_recipe(recipe, latency_table=table, **shared)
        except KeyboardInterrupt:
            raise KeyboardInterrupt(_GO_ON) from None
    _print(values.format, report)
    return EXIT_OK


def make_recipe_of(values: flags.FlagValues) -> Recipe:
    """The recipe of the flags that were given: a recipe file or the model's preset, with those flags changed.

    Raises:
        CompressionError: flags that contradict one another or values out of range.
    """
    changes: dict[str, Any] = {
        name: values[name].value
        for name in ("dataset", "quant_type", "exclude", *_SWITCHES, *_TEXTS)
        if values[name].value is not None
    }
    changes.update({name: _bound(name, values[name].value) for name in _BUDGETS if values[name].value is not None})
    if values.overrides is not None:
        changes["overrides"] = dict(map(_override, values.overrides))
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


def _from_file(values: flags.FlagValues, changes: dict[str, Any]) -> Recipe:
    """The recipe of a file, with the given flags changed."""
    path = Path(values.recipe)
    if not path.is_file():
        raise UsageError(f"expected --recipe to be a file, got {values.recipe!r}")
    merged = {**Recipe.from_json(path.read_text(encoding="utf-8")).to_dict(), **changes}
    return Recipe.from_json(json.dumps(merged))


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


class _Progress:
    """Lines with the seconds since the start."""

    def __init__(self, say: Callable[[str], None]) -> None:
        self._say = say
        self._started = self._told = time.monotonic()

    def tell(self, line: str) -> None:
        """Write one line now."""
        self._told = time.monotonic()
        self._say(f"[{self._told - self._started:4.0f} s] {line}")

    def decoding(self, split: str, done: int, total: int) -> None:
        """Write a line when a split is read, and every few seconds before."""
        if done == total or time.monotonic() - self._told > _SECONDS_BETWEEN_LINES:
            self.tell(f"read {done} of {total} {split} films")


def _print(form: str, report: dict[str, Any]) -> None:
    """The report as asked for: the table, or the whole JSON."""
    from cxr_compress.report import render_report

    if form == "json":
        sys.stdout.write(json.dumps(report, indent=2) + "\n")
    else:
        sys.stdout.write(render_report(report) + "\n")
