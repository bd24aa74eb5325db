"""What every stage of a run shares: the recipe, the films, the store, and how a model is trained and saved in it."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from cxr_compress.device.film_statistics import FilmStatistics
from cxr_compress.keras2 import keras
from cxr_compress.models import ModelAbout, load_model, save_model
from cxr_compress.pipeline.films import RunData
from cxr_compress.pipeline.store import Artefacts, StageStore
from cxr_compress.recipe import DEFAULT_THREADS, Recipe
from cxr_compress.structured import measure_cost
from cxr_compress.train import AugmentRanges, FeatureMatch, FitConfig, fit, pos_weights

Masks = Mapping[str, np.ndarray]
# What no training of a run differs in: every stage that trains depends on them.
OF_TRAINING = ("batch_size", "augment", "weight_decay", "label_smoothing", "seed")


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
        data: the films.
        digest: the hash of train and dev films: what every stage depends on.
        store: where artefacts go.
        news: is told of progress, one line each.
        about: what the model to start from says of itself.
        preflight: what the network was found not to do.
    """

    recipe: Recipe
    data: RunData
    digest: str
    store: StageStore
    news: Callable[[str], None]
    about: ModelAbout | None = None
    preflight: Preflight = Preflight()

    @functools.cached_property
    def pos_weight(self) -> np.ndarray:
        """(findings,) the weights of positives in the loss, those of the uncut model; the device undoes them."""
        if self.about is not None and self.about.pos_weight is not None:
            return np.array(self.about.pos_weight, np.float32)
        return pos_weights(self.data.train.split.labels)

    def inputs(self, fields: Sequence[str], *parents: Artefacts) -> dict[str, Any]:
        """What decides a stage: its fields of the recipe, the films, and what it reads."""
        values = {name: getattr(self.recipe, name) for name in fields}
        # Sums are cut up among threads, and so rounded otherwise; folders from before the field hold runs with two.
        if self.recipe.threads != DEFAULT_THREADS:
            values["threads"] = self.recipe.threads
        return {"recipe": values, "films": self.digest, "parents": [parent.sha256 for parent in parents]}

    def config(self, epochs: int, learning_rate: float, **changes: Any) -> FitConfig:
        """A training of this run."""
        recipe = self.recipe
        plain = FitConfig(
            epochs=epochs,
            learning_rate=learning_rate,
            ranges=_ranges(recipe),
            **{name: getattr(recipe, name) for name in ("batch_size", "weight_decay", "label_smoothing", "seed")},
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
    ) -> dict[str, Any]:
        """Train in place; facts for the manifest."""
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
            progress=self.news,
        )
        return {"best_epoch": result.best_epoch, "dev_auroc": result.best_dev_auroc, "history": list(result.history)}

    def teacher(self, base: Artefacts) -> keras.Model | None:
        """The uncut model, where the recipe lets it teach."""
        wanted = self.recipe.distill_weight or self.recipe.feature_weight
        return load_model(base.keras_file) if wanted else None

    def save(self, model: keras.Model, name: str) -> dict[str, Any]:
        """Write a model of this run; facts for the manifest."""
        dataset = self.data.dataset
        about = ModelAbout(
            findings=dataset.findings,
            preprocess=self.data.spec,
            dataset=dataset.name,
            attribution=dataset.attribution,
            pos_weight=tuple(float(weight) for weight in self.pos_weight),
            films=FilmStatistics.of(self.data.train.images),
        )
        save_model(model, self.store.folder / name, about=about)
        return {"cost": measure_cost(model).to_dict()}


def _ranges(recipe: Recipe) -> AugmentRanges:
    """How far this run changes its training films."""
    mirror = bool(recipe.augment.get("mirror"))
    return AugmentRanges(**{**recipe.augment, "mirror": mirror})  # type: ignore[arg-type]
