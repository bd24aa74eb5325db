"""A base training from a plan and a data set to a model file: image sizes in turn, resumable at every epoch."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import platform
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf

from cxr_compress import __version__
from cxr_compress.data import Dataset, Split, decode_split, load_dataset
from cxr_compress.data.dataset import finding_key, match_findings
from cxr_compress.device.image_checks import ImageStatistics
from cxr_compress.device.spec import PreprocessSpec, preset_name
from cxr_compress.errors import DataError, UnsupportedLayerError
from cxr_compress.files import write_text
from cxr_compress.keras2 import keras
from cxr_compress.metrics import check_exclusive
from cxr_compress.models import ModelAbout, build, read_about, save_model
from cxr_compress.models.meaning import ask_for_preset
from cxr_compress.models.original import Original, read_original
from cxr_compress.models.variants import at_size, in_precision, with_head
from cxr_compress.train.config import AUTO, FitResult, TrainingPlan
from cxr_compress.train.distribute import Distribution
from cxr_compress.train.fit import OnStep, fit
from cxr_compress.train.losses import balanced_weights
from cxr_compress.train.observe import remember
from cxr_compress.train.replicas import make_engine

Decoding = Callable[[str, int, int], None]


@dataclass(frozen=True)
class TrainingFiles:
    """Where a training reads and writes.

    Attributes:
        data_dir: the data set; only read.
        output_dir: the run: a folder per stage, `model.keras` and `training.json`.
        keras_model_file: start from this model instead of a random one; its head is replaced where it has another
            number of outputs.
        teacher_file: model to distil from.
        cache_dir: keep decoded images here.
    """

    data_dir: Path
    output_dir: Path
    keras_model_file: Path | None = None
    teacher_file: Path | None = None
    cache_dir: Path | None = None


@dataclass(frozen=True)
class Listeners:
    """Callbacks that show the progress; none of them changes the result.

    Attributes:
        log: one line each.
        decoding: (split name, images done, images in all).
        on_step: as `fit`.
    """

    log: Callable[[str], None] | None = None
    decoding: Decoding | None = None
    on_step: OnStep | None = None


def run_training(
    plan: TrainingPlan,
    files: TrainingFiles,
    listeners: Listeners = Listeners(),
    distribution: Distribution | None = None,
    *,
    dataset: Dataset | None = None,
    start: Original | None = None,
) -> dict[str, Any] | None:
    """Train as planned; the same call goes on where it was stopped and refuses a folder with another plan.

    Only train and dev are looked at. `cxr_evaluate` scores the result on test, once.

    Args:
        plan: what decides the result.
        files: where to read and write.
        listeners: of the progress, on the chief.
        distribution: several GPUs or machines; each machine makes the same call and needs the data set and the model
            files for itself, the chief's `output_dir` is written to.
        dataset: what `read_training_set` gave, where it is read already.
        start: what `read_start` gave for `files.keras_model_file`, likewise.

    Returns:
        What `training.json` holds: plan, data, history of every stage, hash of the model, versions, seconds. None on a
        worker that is not the chief.

    Raises:
        DataError: the data set cannot be used, or the loss stopped being a number.
        CompressionError: `output_dir` holds another training, the disk is full, or a worker is gone.
        ModelFileError: the model to start from, or a checkpoint, is missing or damaged.
        UnsupportedLayerError: the model cannot change its size or its head.
    """
    started = time.perf_counter()
    engine = make_engine(distribution)
    listeners = listeners if engine.is_chief else Listeners()
    log = listeners.log or (lambda line: None)
    # First of all: a folder that cannot be gone on with is refused before anything slow.
    engine.open_folder(files.output_dir, {**plan.to_dict(), **_file_facts(files)})
    dataset = dataset or read_training_set(plan, files.data_dir)
    if start is None and files.keras_model_file:
        start = read_start(files.keras_model_file, plan)
    for note in (*dataset.notes, *(start.notes() if start else ())):
        log(f"note: {note}")
    if not dataset.labeled:
        raise DataError(f"--dataset={dataset.name} has no labels, so nothing can be learnt from it: give one that has")
    if start is not None and start.pixels.doubt:  # which cxr_train holds against dev before it comes here
        log(f"warning: {start.pixels.doubt.partition(': leave it out')[0]}")
    spec = _base_spec(plan, start, dataset, log)
    model, activation = _start_model(plan, start, spec, dataset, log)
    teacher = _teacher(plan, files, activation, spec, dataset)
    if activation == "softmax":
        for split in (dataset.train, dataset.dev):  # before the images are read, which may take long
            check_exclusive(split.labels, where=split.name, names=dataset.findings)
        log(f"{len(dataset.findings)} classes that exclude one another: {', '.join(dataset.findings)}")
    results: list[FitResult] = []
    for stage, size in enumerate(plan.sizes):
        log(f"stage {stage + 1} of {len(plan.sizes)}: {size} px, {plan.epochs[stage]} epochs")
        spec = dataclasses.replace(spec, height=size, width=size)
        config = plan.config(stage, activation)
        model = in_precision(at_size(model, size, size), plan.precision)
        images, dev = (_decode(split, spec, files, listeners) for split in (dataset.train, dataset.dev))
        result = fit(
            model,
            (images, dataset.train.labels),
            (dev, dataset.dev.labels),
            spec,
            config,
            files.output_dir / f"stage_{stage + 1}_{size}px",
            findings=dataset.findings,
            pos_weight=_loss_weights(plan.pos_weight, dataset.train.labels, config.activation),
            teacher=None if teacher is None else at_size(teacher, size, size),
            progress=listeners.log,
            on_step=listeners.on_step,
            distribution=distribution,
        )
        model = in_precision(model, "float32")
        results.append(result)
        statistics = ImageStatistics.of(images)
        remembered = {}
        if engine.is_chief and stage + 1 == len(plan.sizes):
            told: dict[str, Any] = {"pos_weight": result.pos_weight, "activation": config.activation, "seed": plan.seed}
            remembered = remember(model, images, (dev, dataset.dev.labels), spec, **told)
        del images, dev  # before those of the next size are read: either may fill the memory
    about = ModelAbout(
        findings=dataset.findings,
        preprocess=spec,
        dataset=dataset.name,
        attribution=dataset.attribution,
        pos_weight=tuple(float(weight) for weight in results[-1].pos_weight),
        images=statistics,
        activation=activation,
        **remembered,
    )

    def deliver() -> dict[str, Any]:
        path = files.output_dir / "model.keras"
        save_model(model, path, about=about)
        report = _report(plan, dataset, results, path, time.perf_counter() - started)
        write_text(files.output_dir / "training.json", json.dumps(report, indent=2) + "\n")
        return report

    return engine.on_chief(deliver)


def read_training_set(plan: TrainingPlan, data_dir: Path) -> Dataset:
    """The data set of a plan, its images not yet read.

    Raises:
        DataError: it cannot be used.
    """
    return load_dataset(
        plan.dataset,
        data_dir,
        dev_fraction=plan.dev_fraction,
        seed=plan.seed,
        allow_missing=plan.allow_missing,
        options=plan.options,
    )


def read_start(path: Path, plan: TrainingPlan) -> Original:
    """The model to start from, and what it means by its file and by the plan.

    Raises:
        ModelFileError: it is missing or damaged.
        UnsupportedLayerError: no logits can be had of it.
    """
    original = read_original(
        path,
        labels=plan.labels,
        positive=plan.positive,
        preset=plan.preset or None,
        color=plan.color or None,
        input_size=plan.sizes[0],
    )
    return _require_logits(original)


def _start_model(
    plan: TrainingPlan,
    original: Original | None,
    spec: PreprocessSpec,
    dataset: Dataset,
    log: Callable[[str], None],
) -> tuple[Any, str]:
    """The model before the first step, and what its logits are: findings of their own, or exclusive classes."""
    keras.utils.set_random_seed(plan.seed)
    findings = dataset.findings
    asked = "softmax" if plan.activation == AUTO and dataset.exclusive else plan.activation
    if original is None:
        model = build(plan.model, len(findings), (plan.sizes[0], plan.sizes[0], spec.channels))
        return model, "sigmoid" if asked == AUTO else asked
    columns = _columns(original, findings, plan)
    new = [name for name, column in zip(findings, columns, strict=True) if column is None]
    if new:
        log(f"note: the head is new for {', '.join(new)}, which the model to start from does not answer")
    # Outputs that are all new say nothing of what the old ones meant.
    known = original.change.activation or original.about is not None
    kept = original.activation if known and not new else "sigmoid"
    return with_head(original.model, columns), kept if asked == AUTO else asked


def _columns(original: Original, findings: Sequence[str], plan: TrainingPlan) -> list[int | None]:
    """For each finding of the set the output of a model that answers it; None for a new one.

    Raises:
        DataError: the model names nothing, has as many outputs as the set has findings, and nobody says their order.
    """
    count, names = original.change.outputs, original.names.findings
    by_position = plan.match == "position"
    if by_position or (names is None and count == len(findings)):
        return list(match_findings(names, findings, logits=count, by_position=by_position).logits)
    places = {finding_key(name): column for column, name in enumerate(names or ())}
    return [places.get(finding_key(name)) for name in findings]


def _teacher(
    plan: TrainingPlan, files: TrainingFiles, activation: str, spec: PreprocessSpec, dataset: Dataset
) -> Any | None:
    """The model that teaches, which has to mean the same by its logits and to see the same images.

    Raises:
        DataError: it gives independent findings and the run has exclusive classes, or the other way round, it lacks a
            finding, or its images are prepared in another way.
    """
    if files.teacher_file is None:
        return None
    # What flags say of a model is of the one to start from; of a teacher only how images are prepared, where its own
    # file does not say it.
    unsaid = read_about(files.teacher_file) is None
    teacher = _require_logits(
        read_original(
            files.teacher_file,
            preset=plan.preset or None if unsaid else None,
            color=plan.color or None if unsaid else None,
            input_size=plan.sizes[0],
        )
    )
    known = teacher.change.activation or teacher.about is not None
    if known and teacher.activation != activation:
        kinds = {"softmax": "classes that exclude one another", "sigmoid": "findings of their own"}
        raise DataError(
            f"the teacher {files.teacher_file.name} gives {kinds[teacher.activation]} ({teacher.activation}), this "
            f"training is of {kinds[activation]} ({activation}): give a teacher of the same kind, or "
            f"--activation={teacher.activation}"
        )
    columns = _columns(teacher, dataset.findings, plan)
    lacking = [name for name, column in zip(dataset.findings, columns, strict=True) if column is None]
    if lacking:
        raise DataError(f"the teacher {files.teacher_file.name} does not answer {', '.join(lacking)}: give another one")
    _require_same_images(teacher, spec)
    return with_head(teacher.model, columns)


def _require_same_images(teacher: Original, spec: PreprocessSpec) -> None:
    """Refuse a teacher that was trained on images prepared in another way than those it will be shown."""
    own = teacher.pixels.spec
    if own is None:
        raise DataError(ask_for_preset(f"the teacher {teacher.path.name}"))
    own = dataclasses.replace(own, height=spec.height, width=spec.width)
    if own.to_dict() != spec.to_dict():
        raise DataError(
            f"the teacher {teacher.path.name} takes images prepared by {preset_name(own)} ({own.color}), this training "
            f"prepares them by {preset_name(spec)} ({spec.color}): give a teacher of the same kind, or its --preset"
        )


def _require_logits(original: Original) -> Original:
    if original.change.gives != "logits":
        raise UnsupportedLayerError(
            f"expected a model of which logits can be had, which training needs, but of {original.path.name} "
            f"{original.change.note}: give it a Dense layer of logits as its head"
        )
    return original


def _base_spec(
    plan: TrainingPlan, original: Original | None, dataset: Dataset, log: Callable[[str], None]
) -> PreprocessSpec:
    """How images are prepared: as the model to start from was trained, else as the plan says.

    Where the plan does not say whether they are gray or in color, a set of color images makes a model of color images
    of any that takes three channels: a training for other images fits its first layer anew.

    Raises:
        DataError: nobody says how that model's images were prepared.
    """
    if original is None:
        preset = PreprocessSpec.preset(plan.preset or "imagenet_torch", plan.sizes[0], plan.sizes[0])
        return dataclasses.replace(preset, color=plan.color or dataset.color)
    spec = original.pixels.spec
    if spec is None:
        raise DataError(ask_for_preset(original.path.name))
    if not plan.color and dataset.color == "rgb" != spec.color and spec.channels == len("rgb"):
        log(f"note: {dataset.name} has color images: {original.path.name} is trained for color (unless --color=gray)")
        return dataclasses.replace(spec, color="rgb")
    return spec


def _decode(split: Split, spec: PreprocessSpec, files: TrainingFiles, listeners: Listeners) -> np.ndarray:
    def progress(done: int, total: int) -> None:
        if listeners.decoding:
            listeners.decoding(split.name, done, total)

    return decode_split(split, spec, progress=progress, cache_dir=files.cache_dir)


def _loss_weights(kind: str, labels: np.ndarray, activation: str) -> np.ndarray:
    balanced = balanced_weights(labels, activation)
    return {"balanced": balanced, "sqrt": np.sqrt(balanced), "none": np.ones_like(balanced)}[kind]


def _file_facts(files: TrainingFiles) -> dict[str, Any]:
    """Hashes of the model files that a training starts from; paths decide nothing."""
    return {
        "start": _sha256(files.keras_model_file) if files.keras_model_file else None,
        "teacher": _sha256(files.teacher_file) if files.teacher_file else None,
    }


def _sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def _report(
    plan: TrainingPlan, dataset: Dataset, results: list[FitResult], path: Path, seconds: float
) -> dict[str, Any]:
    content = path.read_bytes()
    return {
        "model_file": path.name,
        "sha256": hashlib.sha256(content).hexdigest(),
        "file_bytes": len(content),
        "plan": plan.to_dict(),
        "images": {split.name: _counts(split, dataset) for split in (dataset.train, dataset.dev)},
        "stages": [
            {
                "size": size,
                "best_epoch": result.best_epoch,
                "dev_auroc": result.best_dev_auroc,
                "training_seconds": round(result.seconds, 1),
                "history": list(result.history),
            }
            for size, result in zip(plan.sizes, results, strict=True)
        ],
        "attribution": dataset.attribution,
        "versions": {
            "cxr_compress": __version__,
            "tensorflow": tf.__version__,
            "python": platform.python_version(),
            "machine": platform.machine(),
        },
        "training_seconds": round(sum(result.seconds for result in results), 1),
        "seconds_of_this_start": round(seconds, 1),
    }


def _counts(split: Split, dataset: Dataset) -> dict[str, Any]:
    positives = split.positive.sum(axis=0)
    return {
        "images": len(split),
        "patients": len(set(split.patients)),
        "positives": {name: int(count) for name, count in zip(dataset.findings, positives, strict=True)},
    }
