"""A stage of a run: one step that makes files from what stands, and says what decided them.

A stage is a class; what it is to do stands in its section of the recipe. `pipeline.stages` lists them in order. A
plug-in adds its own behind any of them:

    class Blur(Stage):
        name, section, results = "blur", "blur", ("blurred.keras",)

        def when(self, recipe): return recipe.section("blur").radius > 0
        def make(self, run, state, work): return run.save(blurred(load_model(state.model.keras_file)), "blurred.keras")

    register_stage(Blur(), after="recover")
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, ClassVar

from cxr_compress.device.cost_table import CostTable
from cxr_compress.pipeline.context import RunContext
from cxr_compress.pipeline.store import Artifacts
from cxr_compress.recipe import Recipe
from cxr_compress.recipe.fields import all_entries
from cxr_compress.structured import ChannelPlan

_NOTHING = Artifacts({}, {}, {})

# Measured with DenseNet121 at 64 to 224 px on two cores; other networks and machines are near enough for a forecast.
_TRAINING_PER_INFERENCE = 3.5
_SECONDS_PER_TRAINED_LAYER = 0.2  # to trace and compile a training step
_SECONDS_PER_CONVERTED_LAYER = 0.03


@dataclass(frozen=True)
class State:
    """What the stages so far have made; each returns a new one.

    Attributes:
        original: the model that everything is compared with.
        model: the Keras model as it stands.
        line: the Keras files that it came from, the original first and itself last -> sha256.
        look: what was found of it on dev, JSON-ready.
        references: the original's own .tflite files, by quant type.
        costs: what its layers cost in bytes and milliseconds, where a budget asks for it.
        plan: which filters stayed; None where all did.
        plan_hash: of the file of the plan.
        limits: by cost, what the budget allows.
        flatbuffers: the compressed model's .tflite content by quant type, nothing attached yet.
        quantization: how it came to integers, and what that did on dev.
        delivered: the compressed .tflite file.
        report: as in report.json.
        seconds: by stage, what it took when it was made.
        answers: of it, beside those of its float twin, JSON-ready.
        made: by stage, its files.
    """

    original: Artifacts = _NOTHING
    model: Artifacts = _NOTHING
    line: Mapping[str, str] = field(default_factory=dict)
    look: Mapping[str, Any] = field(default_factory=dict)
    references: Mapping[str, Path] = field(default_factory=dict)
    costs: CostTable | None = None
    plan: ChannelPlan | None = None
    plan_hash: str = ""
    limits: Mapping[str, float] = field(default_factory=dict)
    flatbuffers: Mapping[str, Path] = field(default_factory=dict)
    quantization: Mapping[str, Any] = field(default_factory=dict)
    delivered: Path = field(default_factory=Path)
    answers: Mapping[str, Any] | None = None
    report: dict[str, Any] = field(default_factory=dict)
    seconds: Mapping[str, float] = field(default_factory=dict)
    made: Mapping[str, Artifacts] = field(default_factory=dict)

    def with_model(self, made: Artifacts) -> State:
        """The same, with another Keras model."""
        return replace(self, model=made, line={**self.line, **made.keras_hash})


@dataclass(frozen=True)
class Pace:
    """How fast this machine is with this network, and how much there is to do; for forecasts.

    Attributes:
        recipe: the choices.
        layers: of the original model.
        original: seconds per image through it.
        pruned: seconds per image through the pruned model.
        train: images.
        dev: images.
        test: images.
    """

    recipe: Recipe
    layers: int
    original: float
    pruned: float
    train: int
    dev: int
    test: int

    def training(self, epochs: int, per_image: float, *, taught: bool) -> float:
        """Seconds of a training; `taught` by the original model too, where the recipe lets it teach."""
        recovery = self.recipe.recovery
        teacher = self.original if taught and (recovery.distill_weight or recovery.feature_weight) else 0.0
        step = per_image * _TRAINING_PER_INFERENCE + teacher
        per_epoch = self.train * step + self.dev * per_image
        return epochs * per_epoch + _SECONDS_PER_TRAINED_LAYER * self.layers if epochs else 0.0

    def conversion(self) -> float:
        """Seconds of one conversion."""
        images = min(self.recipe.export.calibration_images, self.train)
        return _SECONDS_PER_CONVERTED_LAYER * self.layers + images * self.original


class Stage:
    """One step of a run.

    Attributes:
        name: of its manifest, and in what is told.
        section: of the recipe, which decides it; "" where several do.
        results: names of the files that it makes, or globs where the recipe names them, with {model} for the model's.
        of_original: it depends on the original model alone: a search makes it once, for all candidates.
        plans: a forecast needs it, to know the plan.
        looks_at_test: it reads test images, which a search does for its winner alone.
        trains: it is a training by gradients.
    """

    name: ClassVar[str]
    section: ClassVar[str] = ""
    results: ClassVar[tuple[str, ...]] = ()
    of_original: ClassVar[bool] = False
    looks_at_test: ClassVar[bool] = False
    trains: ClassVar[bool] = False

    def when(self, recipe: Recipe) -> bool:
        """Whether the recipe asks for it."""
        return True

    def needed(self, run: RunContext, state: State) -> bool:
        """Whether it is needed after what the stages before have found."""
        return True

    def plans(self, recipe: Recipe) -> bool:
        """Whether a forecast has to run it, to know what the run will make."""
        return False

    def files(self, run: RunContext, state: State) -> Sequence[str]:
        """Names of the files that `make` writes into the folder of the run, each atomically."""
        return self.results

    def inputs(self, run: RunContext, state: State) -> dict[str, Any]:
        """All that decides the result, JSON-ready: unless overridden, its section and the models so far."""
        flags = [entry.flag for entry in all_entries() if entry.path.partition(".")[0] == self.section]
        return run.inputs((*flags, "seed"), state.model, state.original)

    def make(self, run: RunContext, state: State, work: Path) -> Mapping[str, Any] | None:
        """Write the files; facts for the manifest.

        Args:
            run: the run.
            state: what stands.
            work: a folder for what is needed on the way, as checkpoints; it is gone when the stage is done.
        """
        raise NotImplementedError

    def after(self, run: RunContext, state: State, made: Artifacts) -> State:
        """What stands afterwards: unless overridden, with the Keras model that it made, if it made one."""
        return state.with_model(made) if made.keras_hash else state

    def seconds(self, pace: Pace) -> float:
        """About how long it takes; 0 where that is not worth a line of a forecast."""
        return 0.0
