"""One worker of a training of several processes; ``test_distribute.py`` starts two of them, or one with two devices.

    python -m tests.train.worker KIND FOLDER JOB...

Every job trains in its own folder below FOLDER and leaves its losses there, as each worker was told them.
"""

from __future__ import annotations

import dataclasses
import json
import os
import sys
from pathlib import Path

import numpy as np

from cxr_compress.errors import CompressionError
from cxr_compress.models.zeros import zero_masks
from cxr_compress.train import FeatureMatch, replicas
from cxr_compress.train.config import FitConfig, TrainingPlan
from cxr_compress.train.distribute import start_distribution
from cxr_compress.train.fit import fit
from cxr_compress.train.training import TrainingFiles, run_training
from tests.train.images import FINDINGS, SPEC, drawn_images, small_net

# Fixed order, no augmentation; decay and average as well, since each needs variables on every replica.
CONFIG = FitConfig(epochs=2, batch_size=16, learning_rate=5e-3, augment=False, weight_decay=0.1, ema_decay=0.9)
# The model to start from is a plain file, which does not say how images become its input.
PLAN = TrainingPlan("start", "phantom", sizes=(32,), epochs=(6,), batch_sizes=(4,), preset="imagenet_torch")
SMALL = 0.05  # weights below it are the zeros of the job "held", about a third
TRAIN, DEV = drawn_images(160, seed=20), drawn_images(41, seed=21)  # 41: the last dev batch is no multiple of two


def some_unknown(pictures):
    """The same images with labels missing, unevenly over the halves of a batch."""
    images, labels = pictures
    unknown = np.random.default_rng(3).random(labels.shape) < np.linspace(0.1, 0.8, len(labels))[:, None]
    return images, np.where(unknown, np.nan, labels).astype(np.float32)


def train(job, folder, distribution=None):
    """Train as a job says; give the losses of all steps, the model and the result."""
    losses = []
    model, config = small_net(), CONFIG
    masked = job in ("masked", "local_mask")
    options = {}
    if masked:  # and taught: all terms of the loss at once
        config = dataclasses.replace(config, distill_weight=0.3)
        options = {"teacher": small_net(seed=9)}
    if job == "maps":  # of a weight that counts in the losses
        config = dataclasses.replace(config, feature_weight=0.5)
        options = {"teacher": small_net(seed=9), "feature_match": FeatureMatch("conv2", "conv2")}
    if job == "held":
        kernel = model.get_layer("conv2").kernel
        kernel.assign(np.where(np.abs(kernel.numpy()) < SMALL, 0, kernel.numpy()))
        options = {"masks": zero_masks(model)}
    if job == "uneven":
        config = dataclasses.replace(config, batch_size=15)
    pictures = some_unknown(TRAIN) if masked else TRAIN
    if job == "other_images" and not distribution.is_chief:
        pictures = drawn_images(160, seed=99)
    result = fit(
        model,
        pictures,
        DEV,
        SPEC,
        config,
        folder,
        findings=FINDINGS,
        **options,
        on_step=lambda _epoch, _batch, _batches, loss: losses.append(loss),
        distribution=distribution,
    )
    return losses, model, result


def break_it(job):
    """Leave out what the job is named after: the controls."""
    if job == "unsynchronized":
        replicas._synchronize_norms = lambda config, synchronized: None
    if job == "undivided":
        replicas.make_terms = undivided
    if job == "local_mask":
        replicas._share_of_labels = lambda labels: 0.5


def undivided(*arguments, make_terms=replicas.make_terms):
    """The terms of a loss that each replica takes for all there is."""
    terms = make_terms(*arguments)

    def twice(pictures, labels):
        value, others = terms(pictures, labels)
        return 2.0 * value, [2.0 * other for other in others]

    return twice


def run_job(job, folder, distribution):
    """Do one job in a folder of this worker's own, as machines without a shared disk do."""
    if job == "training":
        files = TrainingFiles(folder.parents[1] / "images", folder / "run", folder.parents[1] / "start.keras")
        return {"report": run_training(PLAN, files, distribution=distribution)}
    if job == "damaged" and distribution.is_chief:
        (folder / "run").mkdir()
        (folder / "run" / "run.json").write_text("{")
    whole = {name: getattr(replicas, name) for name in ("_synchronize_norms", "make_terms", "_share_of_labels")}
    break_it(job)
    try:
        losses, model, result = train(job, folder / "run", distribution)
    except CompressionError as error:
        return {"error": type(error).__name__, "text": str(error)}
    finally:
        for name, value in whole.items():
            setattr(replicas, name, value)
    np.savez(folder / "weights.npz", *model.get_weights())
    return {"losses": losses, "history": list(result.history), "best_epoch": result.best_epoch}


def main(kind, folder, *jobs):
    """Start as one of the workers, or as the only one with two processor devices, and do the jobs in turn."""
    if kind == "mirrored":
        import tensorflow as tf

        processor = tf.config.list_physical_devices("CPU")[0]
        tf.config.set_logical_device_configuration(processor, [tf.config.LogicalDeviceConfiguration()] * 2)
    distribution = start_distribution(kind)
    index = json.loads(os.environ["TF_CONFIG"])["task"]["index"] if kind == "multi_worker" else 0
    for job in jobs:
        below = Path(folder) / f"worker_{index}" / job
        below.mkdir(parents=True)
        (below / "told.json").write_text(json.dumps(run_job(job, below, distribution)))


if __name__ == "__main__":
    main(*sys.argv[1:])
