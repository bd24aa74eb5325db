"""What every stage of a run shares: recipe, images and store, and how models are trained, saved, packed and read."""

from __future__ import annotations

import dataclasses
import functools
import math
import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from cxr_compress.data import Dataset
from cxr_compress.device.cost_table import CostTable
from cxr_compress.device.image_checks import ImageStatistics
from cxr_compress.device.modelfile import ModelInfo, read_model
from cxr_compress.device.modelinfo import NOT_STATED
from cxr_compress.errors import CompressionError
from cxr_compress.evaluate import NO_THRESHOLDS, Answers, file_logits, fit_info, follow_info
from cxr_compress.files import make_folder, write_text
from cxr_compress.keras2 import keras
from cxr_compress.lite import LiteModel, audit, pack_file
from cxr_compress.metrics import check_exclusive
from cxr_compress.models import ModelAbout, load_model, save_model
from cxr_compress.models.original import Original
from cxr_compress.pipeline.data import RunData
from cxr_compress.pipeline.store import Artifacts, StageStore, claim
from cxr_compress.quant_types import TYPES
from cxr_compress.recipe import DEFAULT_THREADS, AugmentRanges, Recipe
from cxr_compress.recipe.fields import entries_of
from cxr_compress.structured import measure_cost, vary_images
from cxr_compress.train import FeatureMatch, FitConfig, balanced_weights, fit
from cxr_compress.train.observe import decide

Masks = Mapping[str, np.ndarray]
PREFLIGHT = "preflight"  # the trial before the first stage, which has a manifest as stages have
# What no training of a run differs in: every stage that trains depends on them.
OF_TRAINING = (
    *("batch_size", "weight_decay", "label_smoothing", "seed"),
    *(entry.flag for entry in entries_of(AugmentRanges)),
)


@dataclass(frozen=True)
class Preflight:
    """What a network will not do, where the run can go on without it.

    Attributes:
        qat: why it cannot be trained with the rounding of int8, where the recipe leaves that open (qat=auto).
        int8: why the original model has no int8 file beside it in the report.
    """

    qat: str = ""
    int8: str = ""


@dataclass(frozen=True)
class RunContext:
    """One run.

    Attributes:
        recipe: the choices.
        data: the images.
        digest: the hash of train and dev images: what every stage depends on.
        store: where artifacts go.
        log: is told of progress, one line each.
        original: that model, brought to logits, and what it means; None where one is trained here.
        latency_table: layer times that a device measured, for a bound on latency; None measures them here.
        overwrite: begin anew in a folder with another run.
        preflight: what the network was found not to do.
        preflight_record: the manifest of that, which is written once the folder is taken.
    """

    recipe: Recipe
    data: RunData
    digest: str
    store: StageStore
    log: Callable[[str], None]
    original: Original | None = None
    latency_table: CostTable | None = None
    overwrite: bool = False
    preflight: Preflight = Preflight()
    preflight_record: str = ""

    @functools.cached_property
    def activation(self) -> str:
        """What the logits of this run are: "softmax" of classes that exclude one another, else "sigmoid"."""
        return activation_of(None if self.data is None else self.data.dataset, self.original)

    @property
    def labeled(self) -> bool:
        """Whether the images have labels; without them everything follows the original model alone."""
        return self.data.dataset.labeled

    @property
    def attribution(self) -> str:
        """Whom to name with every copy: of the data, and where these have no labels of the given model too."""
        of_images = self.data.dataset.attribution
        about = self.original.about if self.original is not None else None
        if self.labeled or about is None or not about.attribution:
            return of_images
        return f"{about.attribution}; images without labels: {of_images}"

    @functools.cached_property
    def thresholds(self) -> tuple[float, ...]:
        """(findings,) on the original model's probabilities: those that its file carries, else 0.5."""
        count = len(self.data.dataset.findings)
        about = self.original.about if self.original is not None else None
        said = about.thresholds if about is not None else None
        return said if said is not None and len(said) == count else (0.5,) * count

    @functools.cached_property
    def pos_weight(self) -> np.ndarray:
        """(findings,) the weights of positives in the loss, those of the original model; the device undoes them.

        A given model that names no weights is taken to have had none: any would move its probabilities.
        """
        original = self.original
        said = original.about.weights_of(original.names.positive) if original is not None and original.about else None
        if said is not None:
            return np.array(said, np.float32)
        if original is not None:
            return np.ones(len(self.data.dataset.findings), np.float32)
        return balanced_weights(self.data.train.split.labels, self.activation)

    def claim(self, made_from: Mapping[str, Any], first_stage: str) -> None:
        """Take the folder of the run, from which nothing is written before.

        Args:
            made_from: the original model; what else the run starts from is added.
            first_stage: name of the stage that makes it.

        Raises:
            CompressionError: it holds another run.
        """
        whole = {**made_from, "dataset": self.recipe.data.dataset, "images": self.digest}
        claim(self.store.folder, self.recipe, whole, first_stage=first_stage, overwrite=self.overwrite)
        if self.preflight_record:
            make_folder(self.store.folder / "manifests")
            write_text(self.store.folder / "manifests" / f"{PREFLIGHT}.json", self.preflight_record)

    def inputs(self, flags: Sequence[str], *parents: Artifacts) -> dict[str, Any]:
        """What decides a stage: fields of the recipe by flag, the images, what the logits are, and what it reads."""
        values = {flag: self.recipe.value(flag) for flag in flags}
        # Sums are cut up among threads, and so rounded otherwise; folders from before the field hold runs with two.
        if self.recipe.run.num_threads != DEFAULT_THREADS:
            values["num_threads"] = self.recipe.run.num_threads
        # Left out at its usual value, so that stages made before there was another still stand.
        kind = {} if self.activation == "sigmoid" else {"activation": self.activation}
        return {"recipe": values, "images": self.digest, "parents": [parent.sha256 for parent in parents], **kind}

    @property
    def calibration_flags(self) -> tuple[str, ...]:
        """The fields of the recipe that decide `calibration_sample`, beside the seed."""
        return ("calibration_images",) if self.labeled else ("calibration_images", "vary_images")

    def calibration_sample(self) -> np.ndarray:
        """Images that int8 ranges come from; without labels with varied copies of them.

        Ranges of images that lack a finding cut off what the model answers to it: 128 normal ones alone took a
        DenseNet121 from an AUROC of 0.967 to 0.818 by int8 alone, and to 0.964 with copies.
        """
        images = self.data.sample(self.recipe.export.calibration_images, self.recipe.run.seed + 1)
        varies = not self.labeled and self.recipe.recovery.vary_images
        return vary_images(images, seed=self.recipe.run.seed + 1) if varies else images

    def config(self, epochs: int, learning_rate: float, **changes: Any) -> FitConfig:
        """A training of this run."""
        training = self.recipe.training
        plain = FitConfig(
            epochs=epochs,
            learning_rate=learning_rate,
            ranges=training.augment,
            activation=self.activation,
            batch_size=training.batch_size,
            weight_decay=training.weight_decay,
            label_smoothing=training.label_smoothing,
            seed=self.recipe.run.seed,
        )
        return dataclasses.replace(plain, **changes)

    def train(
        self,
        model: keras.Model,
        config: FitConfig,
        work: Path,
        *,
        teacher: keras.Model | None = None,
        match: FeatureMatch | None = None,
        masks: Masks | None = None,
        best_from_epoch: int = 1,
    ) -> dict[str, Any]:
        """Train in place; facts for the manifest. Epoch 0 is the start, see `fit`."""
        result = fit(
            model,
            self.data.train.pair,
            self.data.dev.pair,
            self.data.spec,
            config,
            work,
            findings=self.data.dataset.findings,
            pos_weight=self.pos_weight,
            teacher=teacher,
            feature_match=match,
            masks=masks,
            best_from_epoch=best_from_epoch,
            progress=self.log,
        )
        auroc = None if math.isnan(result.best_dev_auroc) else result.best_dev_auroc
        return {"best_epoch": result.best_epoch, "dev_auroc": auroc, "history": list(result.history)}

    @property
    def following(self) -> dict[str, Any]:
        """How every training after a removal follows the original model, as fields of `FitConfig`."""
        recovery = self.recipe.recovery
        return {"distill_weight": recovery.distill_weight, "distill_loss": recovery.distill_loss}

    def teacher(self, base: Artifacts) -> keras.Model | None:
        """The original model, where the recipe lets it teach."""
        wanted = self.recipe.recovery.distill_weight or self.recipe.recovery.feature_weight
        return load_model(base.keras_file) if wanted else None

    def save(self, model: keras.Model, name: str, **remembered: Any) -> dict[str, Any]:
        """Write a model of this run; facts for the manifest.

        Args:
            model: it.
            name: of the file.
            remembered: of the original model, what `train.observe.remember` gives.
        """
        dataset, given = self.data.dataset, self.original.about if self.original is not None else None
        # Without labels the model has learnt from what it came with, and not from these images.
        learnt = None if self.labeled or given is None else given.images
        about = ModelAbout(
            findings=dataset.findings,
            preprocess=self.data.spec,
            dataset=dataset.name if self.labeled else trained_on(self.original),
            attribution=self.attribution,
            pos_weight=tuple(float(weight) for weight in self.pos_weight),
            images=learnt or ImageStatistics.of(self.data.train.images),
            activation=self.activation,
            **remembered,
        )
        save_model(model, self.store.folder / name, about=about)
        return {"cost": measure_cost(model).to_dict()}


def activation_of(dataset: Dataset | None, original: Original | None) -> str:
    """What logits are: "softmax" of classes that exclude one another, else "sigmoid".

    Where a model is given, what it ended in, else what its file says. Logits of which nobody says what they are follow
    the data set, as does a model that is trained here.

    Args:
        dataset: whose findings may be such classes; None where no set is known.
        original: the model that is given; None where one is trained.
    """
    of_set = "softmax" if dataset is not None and dataset.exclusive else "sigmoid"
    if original is not None and (original.change.activation or original.about is not None):
        return original.activation
    return of_set


def check_classes(dataset: Dataset, activation: str) -> None:
    """Refuse a data set whose images do not have exactly one class each, where the model's exclude one another.

    Raises:
        DataError: says how many images of which part, and what to do.
    """
    if activation == "softmax" and len(dataset.findings) > 1:
        for split in dataset.splits:
            check_exclusive(split.labels, where=split.name, names=dataset.findings)


def trained_on(original: Original | None) -> str:
    """What a given model was trained on, as far as its file says it."""
    about = original.about if original is not None else None
    return about.dataset if about is not None else ""


# A float file has the zeros of its Keras model; converters may drop a constant or two on the way.
SPARSITY_TOLERANCE = 0.005


def pack(
    run: RunContext,
    lite: LiteModel,
    name: str,
    parents: Mapping[str, str],
    recipe: Mapping[str, Any],
    *,
    original: bool = False,
    follow: np.ndarray | None = None,
) -> bytes:
    """The file that ships; its calibration and thresholds are chosen on dev, from this very file's logits.

    Args:
        run: the run.
        lite: the flatbuffer.
        name: what the file is called, without its ending.
        parents: hashes of what it was made from, the original model first.
        recipe: the choices that made it.
        original: nothing was compressed. Of a given model of exclusive classes the probabilities are then its own, not
            fitted anew: a reader compares this file with the model that was given.
        follow: (dev images, findings) logits of the original model's float file, whose probabilities the file's own
            are to follow where images have no labels; None for that file itself.
    """
    plain = _info(run, lite.quant_type, name, parents, recipe)
    if original and plain.exclusive and run.original is not None:
        return pack_file(lite.content, plain)
    if not run.labeled and follow is None:
        return pack_file(lite.content, plain)
    dev = run.data.dev
    logits = file_logits(lite.content, plain, dev.images)
    images, force = _dev_images(run), run.recipe.run.force
    if follow is not None:
        return pack_file(lite.content, follow_info(plain, logits, follow, run.pos_weight, images=images))
    info = fit_info(plain, dev.split.labels, logits, run.pos_weight, images=images, force=force)
    return pack_file(lite.content, info)


def dev_logits(run: RunContext, content: bytes) -> np.ndarray:
    """(dev images, findings) of a flatbuffer, whatever its quant type, through the device's own code."""
    return file_logits(content, _info(run, "none", "unnamed", {}, {}), run.data.dev.images)


def original_dev_logits(run: RunContext, references: Mapping[str, Path]) -> np.ndarray:
    """(dev images, findings) of the original model's float file: what takes the place of labels where there are none.

    Args:
        run: the run.
        references: the original's files by quant type, as in the state.
    """
    return dev_logits(run, read_model(references["none"]).content)


def _dev_images(run: RunContext) -> str:
    return f"{len(run.data.dev.split)} dev images of {run.data.dataset.name}"


def recipe_in_file(recipe: Recipe) -> dict[str, Any]:
    """The recipe as a delivered file carries it: a reader's options may name folders, so their names alone."""
    values = recipe.to_dict()
    return {**values, "data": {**values["data"], "options": sorted(recipe.data.options)}}


def _info(
    run: RunContext, quant_type: str, name: str, parents: Mapping[str, str], recipe: Mapping[str, Any]
) -> ModelInfo:
    """What a file says before anything is fitted on dev."""
    dataset, count = run.data.dataset, len(run.data.dataset.findings)
    exclusive = run.activation == "softmax"
    own = exclusive or not run.labeled  # the probabilities are the model's, nothing is fitted
    undone = own and bool((run.pos_weight != 1).any())
    said = (
        "class weights of the training loss undone" if undone else f"the model's own {run.activation}, as it was given"
    )
    trained = dataset.name
    if not run.labeled:
        trained = f"{trained_on(run.original) or NOT_STATED}; made to follow that model on {len(run.data.train.split)} "
        trained += "images without labels"
    return ModelInfo(
        model_name=name,
        labels=tuple(dataset.findings),
        preprocess=run.data.spec,
        logit_slope=(1.0,) * count,
        logit_offset=tuple(-math.log(weight) for weight in run.pos_weight) if undone else (0.0,) * count,
        thresholds=(0.5,) * count if exclusive else run.thresholds,
        threshold_source=NO_THRESHOLDS if exclusive else "" if run.labeled else _thresholds_of_original(run),
        calibration_source=said if own else "",
        quant_type=quant_type,
        parents=dict(parents),
        training_data=trained,
        attribution=run.attribution,
        synthetic=dataset.synthetic,
        recipe=dict(recipe),
        activation=run.activation,
    )


def _thresholds_of_original(run: RunContext) -> str:
    """Where the thresholds of a file without labels come from, in words."""
    about = run.original.about if run.original is not None else None
    carried = about is not None and about.thresholds == run.thresholds
    where = "carried over from its file" if carried else "0.5, as its file names none"
    return (
        f"the original model's, on its probability: {where}; nothing was chosen on labels, choose your own before use"
    )


def answers_of(run: RunContext, logits: np.ndarray) -> Answers:
    """What logits of a network that is not packed yet say, with the class weights undone and the original's thresholds.

    Args:
        run: the run.
        logits: (images, findings).
    """
    probabilities, decisions = decide(logits, run.pos_weight, run.thresholds, run.activation)
    return Answers(np.asarray(logits, np.float32), probabilities, decisions, run.activation)


def check_sparsity(lite: LiteModel, wanted: float) -> None:
    """Fail when a file has fewer zeros among its kernels than its Keras model, or a float file more.

    Raises:
        CompressionError: says both numbers.
    """
    found = lite.audit.sparsity.fraction
    # Rounding to int8 adds zeros, never removes one; a float file must be what was asked, not more.
    exact = TYPES[lite.quant_type].exact_zeros
    if wanted and (found < wanted - SPARSITY_TOLERANCE or (exact and found > wanted + SPARSITY_TOLERANCE)):
        raise CompressionError(
            f"the {lite.quant_type} file has {found:.2%} zeros among its kernels, {wanted:.2%} were asked for: "
            "the masks did not survive; please report this"
        )


def file_facts(path: Path, flatbuffer: bytes) -> dict[str, Any]:
    """Size, deflated size and kernel sparsity of a model file."""
    content = path.read_bytes()
    return {
        "tflite_bytes": len(content),
        "deflated_bytes": len(zlib.compress(content, 9)),
        "weight_sparsity": audit(flatbuffer).sparsity.fraction,
    }
