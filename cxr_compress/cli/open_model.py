"""Any model file as something to score: a .tflite through the device's code, a .keras or .h5 in TensorFlow."""

from __future__ import annotations

import dataclasses
import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from cxr_compress.cli.common import UsageError
from cxr_compress.cli.quiet import Say
from cxr_compress.device.classifier import Classifier
from cxr_compress.device.modelfile import read_model
from cxr_compress.device.spec import PreprocessSpec
from cxr_compress.errors import ModelFileError
from cxr_compress.evaluate import BATCH, ScorableModel, from_classifier, undo_class_weights

MODEL_SUFFIXES = (".tflite", ".keras", ".h5", ".hdf5")


@dataclass(frozen=True)
class OpenedModel:
    """A model ready to score.

    Attributes:
        model: What scores it.
        logits: How many it gives.
        facts: What the results say about it, JSON-ready.
    """

    model: ScorableModel
    logits: int
    facts: dict[str, Any]


def open_tflite(
    path: Path, say: Say, *, threads: int, input_size: int | None, delegate: str | None = None
) -> OpenedModel:
    """Give the device's own classifier.

    Args:
        path: the file.
        say: gets notes for the user.
        threads: of the kernels.
        input_size: what the user asked for; a .tflite has one size.
        delegate: library of an accelerator; None runs on the processor.

    Raises:
        UsageError: another size was asked for.
        ModelFileError, RuntimeUnavailableError: as `Classifier`.
    """
    file = read_model(path)
    classifier = Classifier(file, num_threads=threads, delegate=delegate)
    spec = classifier.spec
    if input_size not in (None, spec.height):
        raise UsageError(f"{path.name} takes films of {spec.height} px only: leave --input_size out")
    model = from_classifier(classifier)
    facts = {**_facts(path, model), "name": file.info.model_name, "quant_type": file.info.quant_type}
    if file.info.synthetic:
        say("warning: the model was trained on drawn images; its numbers say nothing about patients")
    facts.update(threshold_source=file.info.threshold_source, synthetic=file.info.synthetic)
    return OpenedModel(model, len(classifier.labels), facts)


def open_keras(
    path: Path,
    say: Say,
    *,
    threads: int | None,
    input_size: int | None,
    preprocess: str,
    color: str,
) -> OpenedModel:
    """Give a Keras model as TensorFlow runs it.

    Args:
        path: the file.
        say: gets notes for the user.
        threads: of TensorFlow; None leaves it all cores.
        input_size: of the films in pixels; None for the model's own.
        preprocess: preset of mean and deviation for a file that does not say its own.
        color: "gray" or "rgb", likewise.

    Raises:
        UsageError: the size has to be given.
        ModelFileError: as `load_model`, or the model is no classifier of one image, or does not fit the size.
    """
    # Here and not above: TensorFlow takes seconds to load, and a .tflite needs none of it.
    import tensorflow as tf

    from cxr_compress.models import load_model, read_about
    from cxr_compress.models.input_shape import require_float_images
    from cxr_compress.train.step import make_forward, predict_logits

    if threads:
        _limit_threads(tf, threads, say)
    say(f"loading {path.name}")
    about, keras_model = read_about(path), load_model(path, say)
    require_float_images(keras_model)
    shape, count = _shapes(keras_model, path)
    if about is None:
        spec = _guess_spec(path, shape, input_size, preprocess, color)
        say(
            f"{path.name} does not say its preprocessing and findings: taking --preprocess={preprocess} at "
            f"{spec.height} x {spec.width} px, and the findings of the data set in its order"
        )
    else:
        own = about.preprocess
        spec = dataclasses.replace(own, height=input_size or own.height, width=input_size or own.width)
    keras_model = _at_size(keras_model, spec, path)
    forward = make_forward(keras_model)

    def logits(films: np.ndarray) -> np.ndarray:
        # Filled up to a whole batch: another batch size would compile the network again.
        filled = np.concatenate([films, np.repeat(films[-1:], BATCH - len(films), axis=0)])
        return predict_logits(keras_model, filled, spec, batch_size=BATCH, forward=forward)[: len(films)]

    weights = None if about is None else about.pos_weight or (1.0,) * count
    model = ScorableModel(
        None if about is None else about.findings,
        spec,
        logits,
        None if weights is None else lambda raw: undo_class_weights(raw, weights),
        calibrated=weights is not None,
        runtime=f"tensorflow {tf.__version__}",
    )
    trained = "" if about is None else about.dataset
    return OpenedModel(
        model, count, {**_facts(path, model), "says_preprocess": about is not None, "trained_on": trained}
    )


def _limit_threads(tf: Any, threads: int, say: Say) -> None:
    try:
        tf.config.threading.set_intra_op_parallelism_threads(threads)
    except RuntimeError:  # fixed once it has computed something: only where another program calls this one
        say("TensorFlow is running already: --threads does not limit it")


def _shapes(model: Any, path: Path) -> tuple[tuple[int | None, int | None, int], int]:
    """(height, width, channels) of the one input, and the number of logits of the one output."""
    shapes = [model.input_shape, model.output_shape]
    if [len(shape) if isinstance(shape, tuple) else 0 for shape in shapes] != [4, 2]:
        raise ModelFileError(
            f"expected one input (films, height, width, channels) and one output (films, findings) in {path.name}, got "
            f"{shapes[0]} and {shapes[1]}"
        )
    return shapes[0][1:], int(shapes[1][1])


def _guess_spec(
    path: Path, shape: tuple[int | None, int | None, int], input_size: int | None, preprocess: str, color: str
) -> PreprocessSpec:
    """What a file that says nothing was most likely trained with."""
    height, width = input_size or shape[0], input_size or shape[1]
    if height is None or width is None:
        raise UsageError(f"{path.name} takes films of any size and does not say which: give --input_size")
    return PreprocessSpec.preset(preprocess, height, width, **{"channels": shape[2], "color": color})


def _at_size(model: Any, spec: PreprocessSpec, path: Path) -> Any:
    """The same weights for films of another size, where the network is convolutional up to a global pooling."""
    from cxr_compress.keras2 import keras

    own = tuple(model.input_shape[1:3])
    if own in ((None, None), (spec.height, spec.width)):
        return model
    try:
        other = keras.models.clone_model(model, input_tensors=keras.Input((spec.height, spec.width, spec.channels)))
        other.set_weights(model.get_weights())
    except Exception as error:  # Keras raises nearly every type here; the cause is kept
        raise ModelFileError(
            f"{path.name} is made for films of {own[0]} x {own[1]} px and its layers do not fit {spec.height} x "
            f"{spec.width}: score it at its own size"
        ) from error
    return other


def _facts(path: Path, model: ScorableModel) -> dict[str, Any]:
    """What the results say about any model."""
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
