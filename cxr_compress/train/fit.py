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
from cxr_compress.train.step import Forward, Objective, Step, WeightAverage, make_optimizer, predict_logits

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
    """Train `model` in place, an epoch at a time, and leave the weights of the best epoch in it.

    After each epoch the whole state is in `run_dir`; the same call with the same `run_dir` goes on there, at once
    done if the run was finished, and ends with the weights of an undisturbed run. (The noise of Dropout layers starts
    afresh after a resume; nothing else does.) A kill or Ctrl-C loses the running epoch only, and leaves `model` with
    half-trained weights.

    Args:
        model: from preprocessed images to logits; not compiled by this function.
        train: (images, labels): uint8 (images, height, width[, 3]) and (images, findings) of 0 to 1, NaN for unknown.
        dev: as `train`, of other patients; chooses the best epoch: by AUROC over the labels that are 0 or 1, or
            where a teacher's probabilities are followed, by the loss that is trained.
        spec: how the model wants its images.
        config: the choices of the run.
        run_dir: folder of this run alone.
        findings: names of the label columns.
        pos_weight: (findings,) weights of positives in the loss, or of each class where they exclude one another; None
            takes `balanced_weights` of the training labels.
        teacher: model whose probabilities the loss also pulls towards, see `FitConfig.distill_weight`, or one of
            whose maps, see `FitConfig.feature_weight`.
        feature_match: which maps; `last_feature_map` names the usual ones.
        masks: layer -> mask of zeros that the model has and keeps, as `models.zeros.zero_masks` gives them. They
            are held in the averaged weights too, and no longer than this call lasts.
        extra_callbacks: Keras callbacks; they may read and change weights, on batch and epoch borders.
        best_from_epoch: earlier epochs (the first is 1) are never the best: pruning is not done yet, say. With 0 the
            start is scored too, as epoch 0, and its weights stay where no epoch beats them: what begins with a good
            model never ends with a worse one, by the dev images.
        facts: what else decides the result (JSON-ready); compared on resume.
        progress: takes one line per epoch, and without `on_step` one every ten seconds within; None is silent.
        on_step: takes (epoch, batch, batches, loss) after each step, both counted from 1: for a progress bar.
        distribution: train on several GPUs or machines: what `start_distribution` gave. Every worker makes the same
            call and gets the same result; `run_dir` is the chief's. It is no part of what decides the run, which may
            go on with other workers or with none.

    Returns:
        What was reached.

    Raises:
        DataError: images and labels do not fit one another or the model, an image has no class or several where they
            exclude one another, or the loss stopped being a number (the images of that batch are then named by hashes
            in `run_dir/nan_batch.json`).
        CompressionError: `run_dir` holds a run with other settings, the disk is full, a worker is gone, teacher and
            weights of its terms do not go together, maps cannot be compared, or the model lacks zeros of the masks.
        ModelFileError: a checkpoint in `run_dir` is damaged.
        UnsupportedLayerError: a map is asked for that the model or the teacher does not have.
    """
    train, dev = checked_images(*train, spec), checked_images(*dev, spec)
    if config.activation == "softmax":
        for part, (_, labels) in (("training", train), ("dev", dev)):
            check_exclusive(labels, where=part, names=tuple(findings))
    weights = balanced_weights(train[1], config.activation) if pos_weight is None else pos_weight
    weights_of_loss = np.asarray(weights, np.float32)
    _check_findings(model, findings, train[1], dev[1], weights_of_loss)
    masks = masks or {}
    _check_options(config, teacher, feature_match, best_from_epoch)
    if feature_match is not None:
        check_match(feature_match, model, teacher, spec.input_shape)
    if masks:
        check_zeros(model, masks)
    if distribution is not None and extra_callbacks:
        raise CompressionError("callbacks change one model, not its replicas: train with them without a distribution")
    # All that the result follows from. A folder begun with anything else is refused, so images and weights go in by
    # hash; options that were added later stand in it only where they are used, so that older folders still go on.
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
    with engine.guard():  # a worker that is gone becomes one clear line
        folder = engine.open_folder(Path(run_dir), decided)
        # Seeded here and not at the start: what a caller drew before must not change the run, nor a resumed one.
        keras.utils.set_random_seed(config.seed)
        # Variables that are replicated have to be made within the strategy's scope: those of the copy that is trained,
        # of its average and of the optimizer.
        with engine.scope():
            batches = Batches(
                *train,
                spec,
                config.batch_size,
                seed=config.seed,
                augment=config.augment,
                ranges=config.ranges,
                mixup=config.mixup,
                share=engine.share(min(config.batch_size, len(train[0]))),
            )
            trained = engine.adopt(model)
            run = _Run(
                engine=engine,
                folder=folder,
                model=trained,
                batches=batches,
                dev=dev,
                findings=tuple(findings),
                config=config,
                optimizer=make_optimizer(config, config.epochs * len(batches), scale_loss=_computes_in_float16(model)),
                average=WeightAverage(trained.weights, config.ema_decay) if config.ema_decay else None,
                callbacks=keras.callbacks.CallbackList(list(extra_callbacks), model=trained, epochs=config.epochs),
                best_from_epoch=best_from_epoch,
                log=progress or (lambda line: None),
                on_step=on_step,
            )
            # Before anything is restored: an optimizer that is not built yet has no variables to restore into.
            run.optimizer.build(trained.trainable_variables)
        done = folder.restore(run.state)
        if not run.is_finished(done):
            objective = Objective(
                loss,
                config.activation,
                engine.follow(teacher),
                config.distill_weight,
                None if feature_match is None else FeatureTerm(feature_match, config.feature_weight),
                distill_loss=config.distill_loss,
                holds_norms=config.batch_norm == "hold",
            )
            # Only while training: the caller's model is as free afterwards as it was before.
            with zeros_held(trained, masks):
                run.train(done, objective)
        # Also where the run was done before: the best epoch is hardly ever the last one, whose weights are restored.
        folder.restore_best(done, trained.weights)
        engine.give_back(trained, model)
    if masks:
        check_zeros(model, masks)
    assert done.best is not None, "best_from_epoch is an epoch of the run"
    best = done.best["dev_auroc"]
    return FitResult(
        best_epoch=done.best_epoch,
        best_dev_auroc=math.nan if best is None else float(best),
        history=tuple(done.history),
        seconds=sum(entry.get("seconds", 0.0) for entry in done.history),
        pos_weight=weights_of_loss,
    )


@dataclass(frozen=True)
class _Run:
    """Everything that stays the same from epoch to epoch, and how an epoch goes."""

    engine: Engine
    folder: RunFolder
    model: Any
    batches: Batches
    dev: SplitImages
    findings: tuple[str, ...]
    config: FitConfig
    optimizer: Any
    average: WeightAverage | None
    callbacks: Any
    best_from_epoch: int
    log: Callable[[str], None]
    on_step: OnStep | None

    @property
    def state(self) -> dict[str, Sequence[Any]]:
        """Every variable that the next epoch depends on."""
        state = {"weights": self.model.weights, "optimizer": self.optimizer.variables}
        return state if self.average is None else {**state, "average": self.average.variables}

    def is_finished(self, done: Progress) -> bool:
        """Whether all epochs are done, or none has been better for as long as patience lasts."""
        waited = done.epochs - done.best_epoch
        gave_up = bool(self.config.patience and done.best and waited >= self.config.patience)
        return gave_up or done.epochs >= self.config.epochs

    def train(self, done: Progress, objective: Objective) -> None:
        """Run the epochs that are missing, saving after each."""
        step = self.engine.make_step(self.model, objective, self.optimizer, self.average)
        forward = self.engine.make_forward(self.model)
        theirs = None
        if objective.teacher is not None and objective.distill_weight:
            theirs = self._dev_logits(objective.teacher, self.engine.make_forward(objective.teacher))
        score = DevScore(self.dev[1], self.findings, objective, theirs)
        epoch_log = EpochLog(self.folder.path)
        with _one_opencv_thread(), contextlib.closing(epoch_log):
            if not self.best_from_epoch and not done.history:
                self._keep(done, {"epoch": 0, **self._scores(forward, score, 0)}, epoch_log)
            self.callbacks.on_train_begin()
            for epoch in range(done.epochs, self.config.epochs):
                self._keep(done, self._train_epoch(step, forward, score, epoch), epoch_log)
                if self.is_finished(done):
                    break
            self.callbacks.on_train_end()

    def _keep(self, done: Progress, entry: Mapping[str, Any], epoch_log: EpochLog) -> None:
        """Write down a finished epoch, from which the run can go on."""
        # The best epoch and an early stop follow from it: the chief's, to the last bit.
        done.history.append(self.engine.agree(entry))
        done.best_epoch = best_epoch(done.history, self.best_from_epoch)
        self.engine.on_chief(lambda: epoch_log.write(done.history))
        self.folder.save(done, self.state, scored=self.average.weights if self.average else None)
        self.log(_epoch_line(done, self.config.epochs))

    def _train_epoch(self, step: Step, forward: Forward, score: DevScore, epoch: int) -> dict[str, Any]:
        """Train on every batch once, then score the dev set."""
        started = time.perf_counter()
        self.batches.epoch = epoch
        self.callbacks.on_epoch_begin(epoch)
        loss, images_per_second = self._train_batches(step, epoch)
        self.callbacks.on_epoch_end(epoch)
        return {
            "epoch": epoch + 1,
            "loss": loss,
            **self._scores(forward, score, epoch + 1),
            "learning_rate": float(self.optimizer.learning_rate.numpy()),
            "images_per_second": round(images_per_second, 1),
            "seconds": round(time.perf_counter() - started, 3),
        }

    def _scores(self, forward: Forward, score: DevScore, epoch: int) -> dict[str, Any]:
        """The figures of the dev set by the weights that count: their average, if there is one."""
        with contextlib.nullcontext() if self.average is None else self.average.in_model():
            scores = score.of(self._dev_logits(self.model, forward))
        # A worker that raised alone would leave the others waiting: all go by the chief's number.
        scores["dev_loss"] = self.engine.agree(scores["dev_loss"])
        if not math.isfinite(scores["dev_loss"]):
            raise DataError(_no_number(scores["dev_loss"], "dev", epoch, self.config))
        return scores

    def _train_batches(self, step: Step, epoch: int) -> tuple[float, float]:
        """Return the mean loss of the epoch and the images trained per second."""
        total, count = 0.0, len(self.batches)
        started = last_log = time.perf_counter()
        with contextlib.closing(ahead(self.batches)) as stream:
            for index, (images, labels) in enumerate(stream):
                self.callbacks.on_train_batch_begin(index)
                value = float(step(images, labels))
                if not math.isfinite(value):
                    self.folder.keep_bad_batch(epoch + 1, index + 1, self.batches.image_ids(index))
                    raise DataError(_no_number(value, "training", epoch + 1, self.config) + _WHERE)
                self.callbacks.on_train_batch_end(index)
                total += value
                if self.on_step is not None:
                    self.on_step(epoch + 1, index + 1, count, value)
                elif time.perf_counter() - last_log > _SECONDS_BETWEEN_LOG:
                    last_log = time.perf_counter()
                    self.log(f"epoch {epoch + 1}/{self.config.epochs}: batch {index + 1}/{count}, loss {value:.4f}")
        return total / count, count * self.batches.batch_size / (time.perf_counter() - started)

    def _dev_logits(self, model: Any, forward: Forward) -> np.ndarray:
        spec, size = self.batches.spec, self.config.batch_size
        return predict_logits(model, self.dev[0], spec, batch_size=size, forward=forward)


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
        got = "no feature_match" if feature_match is None else "a feature_match"
        raise CompressionError(
            "matching maps needs a teacher, a feature_match and a feature_weight above 0, got "
            f"{got} and {config.feature_weight}"
        )
    if (teacher is not None) != (config.distill_weight > 0 or config.feature_weight > 0):
        got = "no teacher" if teacher is None else "a teacher"
        raise CompressionError(
            "distillation needs a teacher and a distill_weight or feature_weight above 0, got "
            f"{got}, {config.distill_weight} and {config.feature_weight}"
        )
    if not 0 <= best_from_epoch <= config.epochs:
        raise CompressionError(f"best_from_epoch must be within 0..{config.epochs} (epochs), got {best_from_epoch}")


def _no_number(value: float, which: str, epoch: int, config: FitConfig) -> str:
    if not epoch:
        return f"the {which} loss is {value} before the first step: look for NaN in the model's weights"
    return (
        f"the {which} loss became {value} in epoch {epoch}: lower the learning rate (now "
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


def _epoch_line(done: Progress, epochs: int) -> str:
    entry = done.history[-1]
    auroc = "undefined" if entry["dev_auroc"] is None else f"{entry['dev_auroc']:.4f}"
    best = f"best epoch {done.best_epoch}" if done.best else "none counts yet"
    accuracy = f", accuracy {entry['dev_accuracy']:.3f}" if entry.get("dev_accuracy") is not None else ""
    dev = f"dev loss {entry['dev_loss']:.4f}, dev AUROC {auroc}{accuracy}"
    if entry["dev_auroc"] is None and not entry["dev_loss"] and "dev_objective" in entry:  # there is no label at all
        dev = f"dev distance to the teacher {entry['dev_objective']:.4f}"
    if not entry["epoch"]:
        return f"start: {dev}"
    rate = f"{entry['images_per_second']:.0f} images/s"
    return f"epoch {entry['epoch']}/{epochs}: loss {entry['loss']:.4f}, {dev} ({best}), {rate}"
