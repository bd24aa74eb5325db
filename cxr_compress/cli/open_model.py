"""Any model file as something to score: a .tflite through the device's code, a .keras or .h5 in TensorFlow."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from absl import flags

from cxr_compress.cli.app import Say, UsageError
from cxr_compress.device.classifier import Classifier
from cxr_compress.device.modelfile import read_model
from cxr_compress.device.spec import PreprocessSpec
from cxr_compress.errors import ModelFileError, UnsupportedLayerError
from cxr_compress.evaluate import BATCH, Match, ScorableModel, from_classifier, undo_class_weights
from cxr_compress.evaluate.first_look import settle_on_dev

if TYPE_CHECKING:
    from cxr_compress.models.original import Original

# Decoded dev images, their labels and patients, and how a model's outputs belong to the columns of the labels.
Dev = tuple[np.ndarray, np.ndarray, Sequence[str], Callable[["Original"], Match]]
MODEL_SUFFIXES = (".tflite", ".keras", ".h5", ".hdf5")


@dataclass(frozen=True)
class OpenedModel:
    """A model ready to score.

    Attributes:
        model: what scores it.
        logits: how many it gives.
        facts: what the results say about it, JSON-ready.
    """

    model: ScorableModel
    logits: int
    facts: dict[str, Any]


def open_tflite(
    path: Path, log: Say, *, num_threads: int, input_size: int | None, delegate: str | None = None
) -> OpenedModel:
    """Give the device's own classifier.

    Args:
        path: the file.
        log: gets notes for the user.
        num_threads: of the kernels.
        input_size: what the user asked for; a .tflite has one size.
        delegate: library of an accelerator; None runs on the processor.

    Raises:
        UsageError: another size was asked for.
        ModelFileError, RuntimeUnavailableError: as `Classifier`.
    """
    file = read_model(path)
    classifier = Classifier(file, num_threads=num_threads, delegate=delegate)
    spec = classifier.spec
    if input_size not in (None, spec.height):
        raise UsageError(f"{path.name} takes images of {spec.height} px only: leave --input_size out")
    model = from_classifier(classifier)
    facts = {**_facts(path, model), "name": file.info.model_name, "quant_type": file.info.quant_type}
    if file.info.synthetic:
        log("warning: the model was trained on drawn images; its numbers say nothing about patients")
    facts.update(threshold_source=file.info.threshold_source, synthetic=file.info.synthetic)
    return OpenedModel(model, len(classifier.labels), facts)


def open_keras(path: Path, values: flags.FlagValues, dev: Callable[[PreprocessSpec], Dev], log: Say) -> OpenedModel:
    """Give a Keras model as TensorFlow runs it.

    Args:
        path: the file.
        values: the flags: number of threads, input size and what the model means (`meaning_flags`).
        dev: decodes the labeled dev images for a preprocessing; asked where the file does not say its own.
        log: gets notes for the user.

    Raises:
        UsageError: the size has to be given.
        CompressionError: as `read_original`, or the model does not fit the size, or nobody knows its preprocessing.
    """
    # Here and not above: TensorFlow takes seconds to load, and a .tflite needs none of it.
    import tensorflow as tf

    from cxr_compress.models.original import read_original
    from cxr_compress.models.variants import at_size
    from cxr_compress.train.step import make_forward, predict_logits

    if values.num_threads:
        _limit_threads(tf, values.num_threads, log)
    log(f"loading {path.name}")
    original = read_original(
        path,
        labels=values.labels,
        positive=values.positive or "",
        preset=values.preset,
        color=values.color,
        input_size=values.input_size,
        force=values.force,
    )
    for note in original.notes():
        log(f"note: {note}")
    size = values.input_size
    shape = original.image_shape
    known = original.pixels.spec
    # read_original asks for a size that neither file nor flag gives.
    height = int(size or (known.height if known else shape[0]) or 0)
    width = int(size or (known.width if known else shape[1]) or 0)
    try:
        keras_model = at_size(original.model, height, width)
    except UnsupportedLayerError as error:
        raise ModelFileError(f"{path.name}: {error}") from error
    forward = make_forward(keras_model)
    original = dataclasses.replace(original, model=keras_model)
    fed = (height, width, shape[2])
    spec, where = settle_pixels(original, fed, dev, log, color=values.color, force=values.force)
    count = original.change.outputs

    def logits(images: np.ndarray) -> np.ndarray:
        # Filled up to a whole batch: another batch size would compile the network again.
        filled = np.concatenate([images, np.repeat(images[-1:], BATCH - len(images), axis=0)])
        outputs = predict_logits(keras_model, filled, spec, batch_size=BATCH, forward=forward)[: len(images)]
        return original.logits_of(outputs)

    about, findings = original.about, original.names.findings
    activation = original.activation
    # A softmax is a model's own probabilities, whoever made the file; of a sigmoid the class weights have to be known.
    plain = (1.0,) * count if about is not None or activation == "softmax" else None
    weights = (about.weights_of(original.names.positive) if about is not None else None) or plain
    model = ScorableModel(
        findings,
        spec,
        logits,
        None if weights is None else lambda raw: undo_class_weights(raw, weights, activation),
        calibrated=weights is not None,
        runtime=f"tensorflow {tf.__version__}",
        activation=activation,
    )
    trained = "" if about is None else about.dataset
    facts = {**_facts(path, model), "preprocess_source": where, "trained_on": trained}
    log(f"note: {original.assumed(findings or ('unnamed',), spec, where)}")
    return OpenedModel(model, count, facts)


def settle_pixels(
    original: Original,
    shape: tuple[int, int, int],
    dev: Callable[[PreprocessSpec], Dev],
    log: Say,
    *,
    color: str | None,
    force: bool | None,
) -> tuple[PreprocessSpec, str]:
    """The preprocessing and where it comes from: what the file says, or what flags or layers say and dev allows.

    Args:
        original: the model.
        shape: (height, width, channels) that it is fed.
        dev: as `open_keras`.
        log: gets notes for the user.
        color: of the user.
        force: as `settle_preset`.

    Raises:
        DataError: as `settle_preset`.
    """
    from cxr_compress.models.meaning import ask_for_preset, possible_presets

    pixels, own = original.pixels, original.pixels.spec
    if own is not None:
        own = dataclasses.replace(own, height=shape[0], width=shape[1])
        if not pixels.preset:
            return own, pixels.source
    specs = possible_presets(shape, color=color)
    images, labels, patients, pairing = dev(next(iter(specs.values())))
    match = pairing(original)
    spec, against = settle_on_dev(
        original.answer(),
        images,
        labels[:, list(match.labels)],
        patients,
        specs,
        preset=pixels.preset,
        own=own,
        ask=ask_for_preset(original.path.name),
        tell=log,
        doubt=pixels.doubt,
        force=force,
        columns=list(match.logits),
    )
    if against:
        log(f"warning: {against}; going on (--force)")
        return spec, f"{pixels.source}, forced: {against}"
    return spec, pixels.source if own is not None else "the clear best on dev"


def _limit_threads(tf: Any, threads: int, log: Say) -> None:
    try:
        tf.config.threading.set_intra_op_parallelism_threads(threads)
    except RuntimeError:  # fixed once it has computed something: only where another program calls this one
        log("TensorFlow is running already: --num_threads does not limit it")


def _facts(path: Path, model: ScorableModel) -> dict[str, Any]:
    """The facts about a model that go into the results."""
    content = path.read_bytes()
    return {
        "file": path.name,
        "sha256": hashlib.sha256(content).hexdigest(),
        "bytes": len(content),
        "findings": None if model.findings is None else list(model.findings),
        "preprocess": model.spec.to_dict(),
        "calibrated": model.calibrated,
        "runtime": model.runtime,
    }
