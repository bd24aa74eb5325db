r"""Whether filter removal works on every image model of `keras.applications`: half the MACs, against the oracle.

Command:  python experiments/zoo.py                      sixteen architectures, each through the oracle
          python experiments/zoo.py --analyze            analysis alone, of every architecture, at its own input size
Time:     about 6 minutes on two cores, --analyze about 4.
Result:   experiments/results/zoo.csv and .json (zoo_analysis.* with --analyze). The bars: half the MACs met, the pruned
          model within 1e-4 of the oracle (in units of the output's spread), and a control that keeps as many but other
          channels at least 100 times further away.

The weights are random, seeded, and made alive: every batch norm takes the statistics of the images, so that the output
depends on the input; the script stops where it does not. Rows are added to those of earlier runs.
"""

from __future__ import annotations

import csv
import io
import json
import re
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from absl import app, flags

from cxr_compress.errors import CompressionError
from cxr_compress.files import write_text
from cxr_compress.keras2 import keras
from cxr_compress.structured import (
    Budget,
    ChannelAnalysis,
    analyze_channels,
    remove_channels,
    score_channels,
    select_channels,
)

RESULTS = Path(__file__).parent / "results"
SIXTEEN = (
    *("DenseNet121", "DenseNet169", "DenseNet201", "ResNet50", "ResNet50V2", "VGG16", "InceptionV3"),
    *("InceptionResNetV2", "Xception", "MobileNet", "MobileNetV2", "MobileNetV3Small", "EfficientNetB0"),
    *("EfficientNetV2B0", "NASNetMobile", "ConvNeXtTiny"),
)
IMAGES = 4
SENSITIVITY = 1e-3

_SMOKE = flags.DEFINE_boolean("smoke", False, "One small architecture, nothing written: checks the script.")
_MODELS = flags.DEFINE_list("models", [], "Names in keras.applications; by default the sixteen, or all to analyze.")
_ANALYZE = flags.DEFINE_boolean("analyze", False, "Only the analysis, at each architecture's own input size.")
_SIZE = flags.DEFINE_integer("size", 96, "Input size in pixels of the checked models.")
_TARGET = flags.DEFINE_float("target_macs", 0.5, "Share of the MACs that stays.")
_ROUND_TO = flags.DEFINE_integer("round_to", 8, "Groups that lose channels keep a multiple of this.")
_SEED = flags.DEFINE_integer("seed", 0, "Of weights, images and scores.")


def build(name: str, size: int | None) -> keras.Model:
    """An architecture with random weights and logits; at its own input size unless one is given."""
    options: dict[str, Any] = {"weights": None, "classes": 14, "classifier_activation": None}
    if size is not None or name.startswith("MobileNetV3"):
        options["input_shape"] = (size or 224, size or 224, 3)
    return getattr(keras.applications, name)(**options)


def blotches(model: keras.Model, rng: np.random.Generator) -> npt.NDArray[np.float32]:
    """Images that differ in more than noise: noise averages out on its way through a deep network."""
    _, height, width, channels = model.input_shape
    coarse = rng.normal(size=(IMAGES, 4, 4, channels)) * rng.uniform(0.5, 2, (IMAGES, 1, 1, 1))
    tiles = np.repeat(np.repeat(coarse, -(-height // 4), axis=1), -(-width // 4), axis=2)[:, :height, :width]
    return np.asarray(64 * tiles + 128, dtype=np.float32)


def enliven(model: keras.Model, images: npt.NDArray[np.float32], rng: np.random.Generator) -> None:
    """Random weights of a scale that keeps variance, and batch norms with the statistics of the images."""
    for layer in leaves(model):
        drawn = [draw(rng, weight) for weight in layer.weights]
        if drawn:
            layer.set_weights(drawn)
    norms = [layer for layer in leaves(model) if isinstance(layer, keras.layers.BatchNormalization)]
    momenta = [layer.momentum for layer in norms]
    for layer in norms:
        layer.momentum = 0.0
    model(images, training=True)
    for layer, momentum in zip(norms, momenta, strict=True):
        layer.momentum = momentum


def leaves(model: keras.Model) -> list[Any]:
    """Every layer that holds weights of its own, input standardization aside."""
    found = []
    for layer in model.layers:
        if isinstance(layer, keras.Model):
            found += leaves(layer)
        elif not isinstance(layer, keras.layers.Normalization):
            found.append(layer)
    return found


def draw(rng: np.random.Generator, weight: Any) -> npt.NDArray[np.float32]:
    """Values for one weight, by its name."""
    shape = tuple(weight.shape)
    if "variance" in weight.name or "gamma" in weight.name:
        return rng.uniform(0.5, 1.5, shape).astype(np.float32)
    if len(shape) == 1:
        return rng.normal(0, 0.3, shape).astype(np.float32)
    fan_in = np.prod(shape[:2]) if "depthwise" in weight.name else np.prod(shape[:-1])
    return rng.normal(0, np.sqrt(2 / fan_in), shape).astype(np.float32)


def reasons(analysis: ChannelAnalysis) -> str:
    """The kinds of reasons and how many groups each protects; the layers' own names are left out."""
    kinds: Counter[str] = Counter()
    for reason in analysis.protected.values():
        kinds.update({re.sub(r"\S+ \((\w+)\)", r"\1", part) for part in reason.split("; ")})
    return "; ".join(f"{count} x {kind}" for kind, count in kinds.most_common())


def analyzed(name: str) -> dict[str, Any]:
    """The row of one architecture, analysis alone."""
    try:
        model = build(name, None)
        started = time.perf_counter()
        analysis = analyze_channels(model)
    except (CompressionError, ValueError) as error:
        return {"model": name, "error": str(error)}
    seconds = time.perf_counter() - started
    return {"model": name, "size": model.input_shape[1], **found(model, analysis), "analysis_seconds": seconds}


def found(model: keras.Model, analysis: ChannelAnalysis) -> dict[str, Any]:
    """What an analysis says, as columns."""
    if analysis.baseline.params != model.count_params():
        raise AssertionError(f"{model.name}: counted {analysis.baseline.params} params of {model.count_params()}")
    return {
        "params": analysis.baseline.params,
        "macs": analysis.baseline.macs,
        "groups": len(analysis.groups),
        "frozen": len(analysis.protected),
        "frozen_reasons": reasons(analysis),
    }


def checked(name: str, size: int) -> dict[str, Any]:
    """The row of one architecture: pruned to the budget and compared with the oracle and its control."""
    # The oracle is the one that the tests use: both then mean the same by "equal".
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
    from tests.structured.oracle import parity

    rng = np.random.default_rng(_SEED.value)
    model = build(name, size)
    images = blotches(model, rng)
    enliven(model, images, rng)
    started = time.perf_counter()
    analysis = analyze_channels(model)
    analysis_seconds = time.perf_counter() - started
    started = time.perf_counter()
    # Random scores, so that the channels that stay differ from group to group: a wrong offset cannot hide.
    scores = score_channels(model, analysis, criterion="random", seed=_SEED.value)
    plan = select_channels(analysis, scores, Budget(macs=_TARGET.value), round_to=_ROUND_TO.value)
    plan_seconds = time.perf_counter() - started
    started = time.perf_counter()
    pruned = remove_channels(model, plan)
    rebuild_seconds = time.perf_counter() - started
    got = parity(model, plan, images, pruned)
    if got.input_sensitivity < SENSITIVITY:
        raise AssertionError(f"{name}: the output hardly depends on the input ({got.input_sensitivity:.1e})")
    return {
        "model": name,
        "size": size,
        **found(model, analysis),
        "macs_fraction": plan.after.macs_fraction(plan.before),
        "params_fraction": plan.after.params / plan.before.params,
        "oracle_error": got.error,
        "control_error": got.control,
        "input_sensitivity": got.input_sensitivity,
        "analysis_seconds": analysis_seconds,
        "plan_seconds": plan_seconds,
        "rebuild_seconds": rebuild_seconds,
    }


def write(name: str, rows: list[dict[str, Any]]) -> None:
    """Add rows to the results of earlier runs, as JSON and as CSV."""
    RESULTS.mkdir(exist_ok=True)
    path = RESULTS / f"{name}.json"
    known = {row["model"]: row for row in json.loads(path.read_text())} if path.exists() else {}
    known.update((row["model"], row) for row in rows)
    merged = sorted(known.values(), key=lambda row: str(row["model"]))
    write_text(path, json.dumps(merged, indent=1) + "\n")
    table = io.StringIO()
    columns = max(map(list, merged), key=len)
    writer = csv.DictWriter(table, columns, extrasaction="ignore", lineterminator="\n")
    writer.writeheader()
    writer.writerows(merged)
    write_text(path.with_suffix(".csv"), table.getvalue())


def main(_: list[str]) -> None:
    """Measure one architecture after the other, print and write each."""
    everything = [name for name in dir(keras.applications) if name[0].isupper()]
    names = ["MobileNet"] if _SMOKE.value else _MODELS.value or (everything if _ANALYZE.value else SIXTEEN)
    for name in names:
        row = analyzed(name) if _ANALYZE.value else checked(name, 32 if _SMOKE.value else _SIZE.value)
        print(json.dumps(row), flush=True)
        if not _SMOKE.value:
            write("zoo_analysis" if _ANALYZE.value else "zoo", [row])
        keras.backend.clear_session()


if __name__ == "__main__":
    app.run(main)
