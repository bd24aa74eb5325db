"""Training: base training, fine-tuning a pruned model and training under pruning are all this one loop."""

from __future__ import annotations

import contextlib
import hashlib
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from cxr_compress.device.preprocess import PreprocessSpec
from cxr_compress.errors import CompressionError, DataError
from cxr_compress.keras2 import keras
from cxr_compress.metrics import check_exclusive
from cxr_compress.models.zeros import check_zeros, zeros_held
from cxr_compress.train.batches import Batches, ahead, checked_images
from cxr_compress.train.checkpoints import Progress, RunFolder
from cxr_compress.train.config import FitConfig, FitResult
from cxr_compress.train.dev_score import DevScore, EpochLog, best_epoch
from cxr_compress.train.distill import FeatureMatch, FeatureTerm, check_match
from cxr_compress.train.distribute import Distribution
from cxr_compress.train.losses import balanced_weights, make_loss
from cxr_compress.train.replicas import Engine, make_engine
from cxr_compress.train.step import Forward, Step, WeightAverage, make_optimizer, predict_logits

SplitImages = tuple[np.ndarray, np.ndarray]
OnStep = Callable[[int, int, int, float], None]
_SECONDS_BETWEEN_LOG = 10.0
_WHERE = "; nan_batch.json in the run's folder names the batch's images by hash"


def fit(  # noqa: PLR0917 - what to train, on what, how and where: no call does without one of the six
    model: Any,
    train: SplitImages,
    dev: SplitImages,
    spec: PreprocessSpec,
    config: FitConfig,
    run_dir: str | Path,
    *,
    findings: Sequence[str],
    pos_weight: np.ndarray | None = None,
    teacher: Any | None = None,
    feature_match: FeatureMatch | None = None,
    masks: Mapping[str, np.ndarray] | None = None,
    extra_callbacks: Sequence[Any] = (),
    best_from_epoch: int = 1,
    facts: Mapping[str, Any] | None = None,
    progress: Callable[[str], None] | None = None,
    on_step: OnStep | None = None,
    distribution: Distribution | None = None,
) -> FitResult:
    """Train ``model`` in place, an epoch at a time, and leave the weights of the best epoch in it.

    After each epoch the whole state is in ``run_dir``; the same call with the same ``run_dir`` goes on there, at once
    done if the run was finished, and ends with the weights of an undisturbed run. (The noise of Dropout layers starts
    afresh after a resume; nothing else does.) A kill or Ctrl-C loses the running epoch only, and leaves ``model`` with
    half-trained weights.

    Args:
        model: From preprocessed images to logits; not compiled by this function.
        train: (images, labels): uint8 (images, height, width[, 3]) and (images, findings) of 0 to 1, NaN for unknown.
        dev: As ``train``, of other patients; chooses the best epoch: by AUROC over the labels that are 0 or 1, or
            where a teacher's probabilities are followed, by the loss that is trained.
        spec: How the model wants its images.
        config: The choices of the run.
        run_dir: Folder of this run alone.
        findings: Names of the label columns.
        pos_weight: (findings,) weights of positives in the loss, or of each class where they exclude one another; None
            takes ``balanced_weights`` of the training labels.
        teacher: Model whose probabilities the loss also pulls towards, see ``FitConfig.distill_weight``, or one of
            whose maps, see ``FitConfig.feature_weight``.
        feature_match: Which maps; ``last_feature_map`` names the usual ones.
        masks: Layer -> mask of zeros that the model has and keeps, as ``models.masked.zero_masks`` gives them. They
            are held in the averaged weights too, and no longer than this call lasts.
        extra_callbacks: Keras callbacks; they may read and change weights, on batch and epoch borders.
        best_from_epoch: Earlier epochs (the first is 1) are never the best: pruning is not done yet, say.
        facts: What else decides the result (JSON-ready); compared on resume.
        progress: Takes one line per epoch, and without ``on_step`` one every ten seconds within; None is silent.
        on_step: Takes (epoch, batch, batches, loss) after each step, both counted from 1: for a progress bar.
        distribution: Train on several GPUs or machines: what ``start_distribution`` gave. Every worker makes the same
            call and gets the same result; ``run_dir`` is the chief's. It is no part of what decides the run, which may
            go on with other workers or with none.

    Returns:
        What was reached.

    Raises:
        DataError: Images and labels do not fit one another or the model, an image has no class or several where they
            exclude one another, or the loss stopped being a number (the images of that batch are then named by hashes
            in ``run_dir/nan_batch.json``).
        CompressionError: ``run_dir`` holds a run with other settings, the disk is full, a worker is gone, teacher and
            weights of its terms do not go together, maps cannot be compared, or the model lacks zeros of the masks.
        ModelFileError: A checkpoint in ``run_dir`` is damaged.
        UnsupportedLayerError: A map is asked for that the model or the teacher does not have.
    """
    train, dev = checked_images(*train, spec), checked_images(*dev, spec)
    if config.activation == "softmax":
        for part, (_, labels) in (("training", train), ("dev", dev)):
            check_exclusive(labels, where=part, names=tuple(findings))
    balanced = pos_weight is None
    weights_of_loss = balanced_weights(train[1], config.activation) if balanced else np.asarray(pos_weight, np.float32)
    _check_findings(model, findings, train[1], dev[1], weights_of_loss)
    masks = masks or {}
    _check_options(config, teacher, feature_match, best_from_epoch)
    if feature_match is not None:
        check_match(feature_match, model, teacher, spec.input_shape)
    if masks:
        check_zeros(model, masks)
    if distribution is not None and extra_callbacks:
        raise CompressionError("callbacks change one model, not its replicas: train with them without a distribution")
    decided = {
        **config.deciding(),
        **(facts or {}),
        "findings": list(findings),
        "preprocess": spec.to_dict(),
        "best_from_epoch": best_from_epoch,
        "pos_weight": [float(weight) for weight in weights_of_loss],
        "images": _digest([*train, *dev]),
        "start_weights": _digest(model.get_weights()),
        "teacher": _digest(teacher.get_weights()) if teacher is not None else None,
        **({} if feature_match is None else {"feature_match": feature_match.to_dict()}),
        **({"masks": {name: _digest([mask]) for name, mask in masks.items()}} if masks else {}),
    }
    engine = make_engine(distribution)
    loss = make_loss(config, weights_of_loss, train[1], dev[1])
    with engine.guard():
        folder = engine.open_folder(Path(run_dir), decided)
        keras.utils.set_random_seed(config.seed)
        with engine.scope():
            batches = _batches(train, spec, config, engine)
            trained = engine.adopt(model)
            run = _Run(
                engine=engine,
                model=trained,
                batches=batches,
                dev=dev,
                findings=tuple(findings),
                config=config,
                loss=loss,
                optimizer=make_optimizer(config, config.epochs * len(batches), scale_loss=_computes_in_float16(model)),
                average=WeightAverage(trained.weights, config.ema_decay) if config.ema_decay else None,
                callbacks=keras.callbacks.CallbackList(list(extra_callbacks), model=trained, epochs=config.epochs),
                log=progress or _silent,
                on_step=on_step,
            )
            run.optimizer.build(trained.trainable_variables)
        done = folder.restore(run.state)
        if not _finished(done, config):
            features = None if feature_match is None else FeatureTerm(feature_match, config.feature_weight)
            with zeros_held(trained, masks):
                _train(run, folder, done, engine.follow(teacher), features, best_from_epoch)
        folder.restore_best(done, trained.weights)
        engine.give_back(trained, model)
    if masks:
        check_zeros(model, masks)
    return _result(done, weights_of_loss)


def _batches(train: SplitImages, spec: PreprocessSpec, config: FitConfig, engine: Engine) -> Batches:
    return Batches(
        *train,
        spec,
        config.batch_size,
        seed=config.seed,
        augment=config.augment,
        ranges=config.ranges,
        mixup=config.mixup,
        share=engine.share(min(config.batch_size, len(train[0]))),
    )


@dataclass(frozen=True)
class _Run:
    """Everything that stays the same from epoch to epoch."""

    engine: Engine
    model: Any
    batches: Batches
    dev: SplitImages
    findings: tuple[str, ...]
    config: FitConfig
    loss: Any
    optimizer: Any
    average: WeightAverage | None
    callbacks: Any
    log: Callable[[str], None]
    on_step: OnStep | None

    @property
    def state(self) -> dict[str, Sequence[Any]]:
        """Every variable that the next epoch depends on."""
        state = {"weights": self.model.weights, "optimizer": self.optimizer.variables}
        return state if self.average is None else {**state, "average": self.average.variables}

    def scored_weights(self) -> contextlib.AbstractContextManager[None]:
        """Within it the model has the weights that count: their average, if there is one."""
        return contextlib.nullcontext() if self.average is None else self.average.in_model()


def _train(  # noqa: PLR0917 - what is trained, where it is kept, and what it learns from
    run: _Run,
    folder: RunFolder,
    done: Progress,
    teacher: Any | None,
    features: FeatureTerm | None,
    best_from_epoch: int,
) -> None:
    """Run the epochs that are missing, saving after each."""
    config = run.config
    step = run.engine.make_step(
        run.model, run.loss, run.optimizer, teacher, config.distill_weight, run.average, features, config.activation
    )
    forward = run.engine.make_forward(run.model)
    theirs = _dev_logits(run, teacher) if teacher is not None and config.distill_weight else None
    score = DevScore(run.dev[1], run.findings, run.loss, theirs, config.distill_weight, config.activation)
    log = EpochLog(folder.path)
    with _one_opencv_thread(), contextlib.closing(log):
        run.callbacks.on_train_begin()
        for epoch in range(len(done.history), config.epochs):
            done.history.append(_one_epoch(run, folder, step, forward, score, epoch))
            done.best_epoch = best_epoch(done.history, best_from_epoch)
            run.engine.on_chief(lambda: log.write(done.history))
            folder.save(done, run.state, scored=run.average.weights if run.average else None)
            run.log(_epoch_line(done.history[-1], config.epochs, done.best_epoch))
            if _finished(done, config):
                break
        run.callbacks.on_train_end()


def _finished(done: Progress, config: FitConfig) -> bool:
    """Whether all epochs are done, or none has been better for as long as patience lasts."""
    waited = len(done.history) - done.best_epoch
    gave_up = bool(config.patience and done.best_epoch and waited >= config.patience)
    return gave_up or len(done.history) >= config.epochs


def _one_epoch(  # noqa: PLR0917 - how to train and how to score, where it is kept, and which epoch it is
    run: _Run, folder: RunFolder, step: Step, forward: Forward, score: DevScore, epoch: int
) -> dict[str, Any]:
    """Train on every batch once, then score the dev set."""
    started = time.perf_counter()
    run.batches.epoch = epoch
    run.callbacks.on_epoch_begin(epoch)
    loss, images_per_second = _train_batches(run, folder, step, epoch)
    run.callbacks.on_epoch_end(epoch)
    with run.scored_weights():
        found = score.of(_dev_logits(run, run.model, forward))
    found["dev_loss"] = run.engine.agree(found["dev_loss"])
    if not math.isfinite(found["dev_loss"]):
        raise DataError(_no_number(found["dev_loss"], "dev", epoch, run.config))
    entry = {
        "epoch": epoch + 1,
        "loss": loss,
        **found,
        "learning_rate": float(run.optimizer.learning_rate.numpy()),
        "images_per_second": round(images_per_second, 1),
        "seconds": round(time.perf_counter() - started, 3),
    }
    return run.engine.agree(entry)  # the best epoch and an early stop follow from it: the chief's, to the last bit


def _train_batches(run: _Run, folder: RunFolder, step: Step, epoch: int) -> tuple[float, float]:
    """Return the mean loss of the epoch and the images trained per second."""
    total, count = 0.0, len(run.batches)
    started = last_log = time.perf_counter()
    with contextlib.closing(ahead(run.batches)) as stream:
        for index, (images, labels) in enumerate(stream):
            run.callbacks.on_train_batch_begin(index)
            value = float(step(images, labels))
            if not math.isfinite(value):
                folder.keep_bad_batch(epoch + 1, index + 1, run.batches.image_ids(index))
                raise DataError(_no_number(value, "training", epoch, run.config) + _WHERE)
            run.callbacks.on_train_batch_end(index)
            total += value
            if run.on_step is not None:
                run.on_step(epoch + 1, index + 1, count, value)
            elif time.perf_counter() - last_log > _SECONDS_BETWEEN_LOG:
                last_log = time.perf_counter()
                run.log(f"epoch {epoch + 1}/{run.config.epochs}: batch {index + 1}/{count}, loss {value:.4f}")
    return total / count, count * run.batches.batch_size / (time.perf_counter() - started)


def _dev_logits(run: _Run, model: Any, forward: Forward | None = None) -> np.ndarray:
    """What a model, which may be the teacher, says of the dev images."""
    forward = forward or run.engine.make_forward(model)
    return predict_logits(model, run.dev[0], run.batches.spec, batch_size=run.config.batch_size, forward=forward)


def _result(done: Progress, pos_weight: np.ndarray) -> FitResult:
    best = done.history[done.best_epoch - 1]["dev_auroc"]
    return FitResult(
        best_epoch=done.best_epoch,
        best_dev_auroc=math.nan if best is None else float(best),
        history=tuple(done.history),
        seconds=sum(entry["seconds"] for entry in done.history),
        pos_weight=pos_weight,
    )


def _check_findings(
    model: Any, findings: Sequence[str], train_labels: np.ndarray, dev_labels: np.ndarray, pos_weight: np.ndarray
) -> None:
    """Refuse labels and a model that do not belong together."""
    counts = {
        "logits of the model": model.output_shape[-1],
        "findings": len(findings),
        "columns of the training labels": train_labels.shape[-1],
        "columns of the dev labels": dev_labels.shape[-1],
        "weights in pos_weight": len(pos_weight),
    }
    if len(set(counts.values())) > 1:
        listed = ", ".join(f"{count} {name}" for name, count in counts.items())
        raise DataError(f"the numbers of findings differ: {listed}; give each finding one logit and one label column")


def _check_options(
    config: FitConfig, teacher: Any | None, feature_match: FeatureMatch | None, best_from_epoch: int
) -> None:
    if (feature_match is not None) != (config.feature_weight > 0):
        given = "no feature_match" if feature_match is None else "a feature_match"
        raise CompressionError(
            "matching maps needs a teacher, a feature_match and a feature_weight above 0, got "
            f"{given} and {config.feature_weight}"
        )
    if (teacher is not None) != (config.distill_weight > 0 or config.feature_weight > 0):
        given = "no teacher" if teacher is None else "a teacher"
        raise CompressionError(
            "distillation needs a teacher and a distill_weight or feature_weight above 0, got "
            f"{given}, {config.distill_weight} and {config.feature_weight}"
        )
    if not 1 <= best_from_epoch <= config.epochs:
        raise CompressionError(f"best_from_epoch must be within 1..{config.epochs} (epochs), got {best_from_epoch}")


def _no_number(value: float, which: str, epoch: int, config: FitConfig) -> str:
    return (
        f"the {which} loss became {value} in epoch {epoch + 1}: lower the learning rate (now "
        f"{config.learning_rate:g}), or look for NaN in the model's weights; the epochs before are kept"
    )


def _computes_in_float16(model: Any) -> bool:
    return any(layer.dtype_policy.name == "mixed_float16" for layer in model.layers)


def _digest(arrays: Sequence[np.ndarray]) -> str:
    """One hash over the values, shapes and types of arrays."""
    state = hashlib.sha256()
    for array in arrays:
        state.update(f"{array.dtype} {array.shape}".encode())
        state.update(np.ascontiguousarray(array).data)
    return state.hexdigest()


@contextlib.contextmanager
def _one_opencv_thread() -> Iterator[None]:
    """Leave the cores to TensorFlow: images are small, and OpenCV's own threads only get in its way."""
    before = cv2.getNumThreads()
    cv2.setNumThreads(1)
    try:
        yield
    finally:
        cv2.setNumThreads(before)


def _epoch_line(entry: Mapping[str, Any], epochs: int, best_epoch: int) -> str:
    auroc = "undefined" if entry["dev_auroc"] is None else f"{entry['dev_auroc']:.4f}"
    best = f"best epoch {best_epoch}" if best_epoch else "none counts yet"
    accuracy = f", accuracy {entry['dev_accuracy']:.3f}" if entry.get("dev_accuracy") is not None else ""
    return (
        f"epoch {entry['epoch']}/{epochs}: loss {entry['loss']:.4f}, dev loss {entry['dev_loss']:.4f}, "
        f"dev AUROC {auroc}{accuracy} ({best}), {entry['images_per_second']:.0f} images/s"
    )


def _silent(_line: str) -> None:
    """No one wants to hear of the progress."""
