"""What a run will want of a network, tried on the untrained one before anything slow begins.

The stages that may refuse a network (the quantizer, the runtime, training with rounding) stand at the end of a run,
behind hours of training; whether they take a network depends on its layers and not on what those have learnt.
"""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from cxr_compress.device.native import NativeCrashError, run_in_child
from cxr_compress.errors import CompressionError, UnsupportedLayerError
from cxr_compress.keras2 import keras
from cxr_compress.lite import convert
from cxr_compress.lite.calibration import MIN_IMAGES
from cxr_compress.models import build, load_model
from cxr_compress.models.logits_head import to_logits
from cxr_compress.pipeline.context import PREFLIGHT, Preflight
from cxr_compress.pipeline.stages.prune_weights import sparsity_target
from cxr_compress.pipeline.stages.train import feature_match
from cxr_compress.pipeline.store import Log, StageStore, versions
from cxr_compress.recipe import Recipe
from cxr_compress.sparsity import allocate
from cxr_compress.structured import Budget, ChannelPlan, remove_iteratively, score_channels

# A DenseNet121 at 224 px takes about a minute and a half on two cores, with quantization-aware training.
_SECONDS = 1800.0
_REFERENCE = "int8"
_NOTHING = "nothing was trained: "
_FIELDS = (
    *("model", "input_size", "quant_type", "qat", "auto_fallback"),
    *("round_to", "min_channels", "max_removed_fraction", "exclude", "allow_inexact", "removal_steps"),
    *("weight_sparsity", "weight_threshold", "sparsity_allocation", "sparsity_pattern", "feature_weight"),
)


def check_network(
    recipe: Recipe,
    shape: tuple[int, int, int],
    findings: int,
    keras_model_file: Path | None,
    store: StageStore,
    *,
    positive: int | None = None,
) -> Preflight:
    """Convert the network of a run to what the recipe asks for and run that once; a result is kept in the store.

    The network is the model of the file or the recipe's architecture with random weights, pruned to the budget on MACs
    and parameters by the size of its weights. All of it happens in a forked process with a time limit while TensorFlow
    has not computed anything in this one, as in every command. Later it happens here, and only the quantizer and the
    first run of the file, which are what crashes, have processes of their own.

    Args:
        recipe: the choices.
        shape: of an image: height, width, channels.
        findings: logits of the network.
        keras_model_file: the model to start from, if any.
        store: where the result is kept.
        positive: which of two softmax classes of that model is the finding.

    Raises:
        BudgetError: the budget cannot be reached.
        CompressionError: a stage of the run would refuse the network, or crash on it; the message names the layer or
            operator, the quant type and what to do.
    """
    removal = recipe.removal
    overrides = {"overrides": list(map(list, removal.overrides.items())), "budget": removal.budget.bounds}
    inputs = {
        "recipe": {name: recipe.value(name) for name in _FIELDS} | overrides,
        "shape": shape,
        "findings": findings,
        "positive": positive,
        "file": hashlib.sha256(keras_model_file.read_bytes()).hexdigest() if keras_model_file else "",
        "versions": dict(versions()),
    }

    def make(_: Path) -> Mapping[str, Any]:
        def step() -> Preflight:
            return _try(recipe, shape, findings, keras_model_file, positive)

        if _has_computed():
            return dataclasses.asdict(step())
        try:
            return dataclasses.asdict(run_in_child(step, seconds=_SECONDS))
        except NativeCrashError as crash:
            raise UnsupportedLayerError(
                f"{_NOTHING}converting the untrained network to {recipe.export.quant_type} ended its process with "
                f"{crash}: choose another --quant_type, or build the network of other layers"
            ) from crash

    return Preflight(**store.run(PREFLIGHT, inputs, [], make).facts)


def tell(found: Preflight, log: Log) -> None:
    """Say what the run goes on without."""
    if found.qat:
        log(f"qat=auto: {found.qat}; so int8 is made after training, whatever that costs on dev")
    if found.int8:
        log(f"the original model gets no {_REFERENCE} file to compare with: {found.int8}")


def _has_computed() -> bool:
    """Whether TensorFlow has started its threads in this process, which a forked one would wait for in vain."""
    from tensorflow.python.eager import context

    current = context.context_safe()
    return current is not None and bool(getattr(current, "_initialized", True))


def _try(
    recipe: Recipe, shape: tuple[int, int, int], findings: int, keras_model_file: Path | None, positive: int | None
) -> Preflight:
    """All that may refuse a network, cheapest first."""
    if keras_model_file is None:
        keras.utils.set_random_seed(recipe.run.seed)
        model = build(recipe.model.name, findings, shape)
    else:
        model, _ = to_logits(load_model(keras_model_file), positive=positive)
    if tuple(model.input_shape[1:]) != shape:
        return Preflight()  # which the stage that takes the model says better
    pruned, plan = _prune(model, recipe)
    if recipe.recovery.feature_weight and recipe.recovery.epochs:
        feature_match(pruned, model, plan)
    if recipe.sparsity.zeroes_weights:
        allocate(pruned, sparsity_target(recipe))
    options = {"auto_fallback": recipe.export.auto_fallback} if recipe.export.quantizes else {}
    _convert(pruned, recipe.export.quant_type, shape, **options)
    return Preflight(_try_qat(recipe, pruned, shape), _try_reference(recipe, model, shape))


def _prune(model: keras.Model, recipe: Recipe) -> tuple[keras.Model, ChannelPlan | None]:
    """The network with as many filters as the run will leave it, and the plan; bytes and times are not measured here.

    Raises:
        BudgetError: the bounds on MACs and parameters cannot be reached.
    """
    removal, bounds = recipe.removal, recipe.removal.budget.bounds
    budget = Budget(bounds.get("macs"), bounds.get("params"))
    if not ({"macs", "params"} & set(bounds)):
        return model, None
    pruned, plan, _ = remove_iteratively(
        model,
        budget,
        lambda network, analysis: score_channels(network, analysis, criterion="l1"),
        steps=removal.steps,
        exclude=removal.exclude,
        allow_inexact=removal.allow_inexact,
        scope="local" if removal.scope == "local" else "global",
        round_to=removal.round_to,
        min_channels=removal.min_channels,
        max_removed_fraction=removal.max_removed_fraction,
        overrides=removal.overrides,
        layers=removal.remove_layers,
    )
    return pruned, plan


def _try_qat(recipe: Recipe, model: keras.Model, shape: tuple[int, int, int]) -> str:
    """Why training with rounding is left out; "" where it will work, or is not wanted.

    Raises:
        CompressionError: it is wanted in any case and will not work.
    """
    export = recipe.export
    if not export.quantizes or export.qat.when == "never":
        return ""
    from cxr_compress.lite.qat import convert_qat, prepare_qat

    try:
        convert_qat(prepare_qat(model, _noise(shape)), export.quant_type)
    except CompressionError as error:
        if export.qat.when == "auto":
            return str(error)
        raise type(error)(f"{_NOTHING}{error}; or give --qat=auto or --qat=never") from error
    return ""


def _try_reference(recipe: Recipe, model: keras.Model, shape: tuple[int, int, int]) -> str:
    """Why the original model has no int8 file; where the run makes one of the same layers, it is known that it has."""
    if recipe.export.quant_type == _REFERENCE:
        return ""
    try:
        _convert(model, _REFERENCE, shape)
    except CompressionError as error:
        return str(error).removeprefix(_NOTHING)
    return ""


def _convert(model: keras.Model, quant_type: str, shape: tuple[int, int, int], **options: Any) -> None:
    """Convert, which also runs each file once.

    Raises:
        CompressionError: as `convert`, with a note that this was a trial.
    """
    try:
        # As the run does but for what takes long: the answers to noise say nothing.
        common: dict[str, Any] = {"calibration_steps": MIN_IMAGES, "calibration_method": "minmax", "compare": False}
        convert(model, quant_type, calibration=_noise(shape), **common, **options)
    except CompressionError as error:
        raise type(error)(f"{_NOTHING}{quant_type} fails for this network: {error}") from error


def _noise(shape: tuple[int, int, int]) -> Iterator[np.ndarray]:
    yield np.random.default_rng(0).normal(size=(MIN_IMAGES, *shape)).astype(np.float32)
