"""The stages of the one algorithm: what each reads, makes and must leave true."""

from __future__ import annotations

import functools
import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from cxr_compress.device.atomic import write_text
from cxr_compress.errors import CompressionError
from cxr_compress.keras2 import keras
from cxr_compress.models import chexnet, tiny_chexnet
from cxr_compress.models.keras_file import load_model, save_model
from cxr_compress.pipeline.films import RunData
from cxr_compress.pipeline.store import Artefacts, StageStore
from cxr_compress.recipe import Recipe
from cxr_compress.sparsity import measure_sparsity, prune_weights
from cxr_compress.structured import (
    Budget,
    measure_cost,
    recalibrate_batch_norm,
    remove_iteratively,
    score_channels,
)
from cxr_compress.train import FitConfig, fit, pos_weights

ARCHITECTURES = {"chexnet": chexnet, "tiny_chexnet": tiny_chexnet}


@dataclass(frozen=True)
class Stages:
    """The Keras part of a run; every method is one stage and gives its artefacts.

    Attributes:
        recipe: the choices.
        data: the films.
        digest: the hash of train and dev films: what every stage here depends on.
        store: where artefacts go.
    """

    recipe: Recipe
    data: RunData
    digest: str
    store: StageStore
    news: Any

    def base(self, keras_model_file: Path | None) -> Artefacts:
        """The uncut model: trained here, or taken from a file and checked against the data."""
        if keras_model_file is not None:
            model = load_model(keras_model_file)
            self._check_fit(model)
            inputs = {"weights": weights_hash(model)}
            return self.store.run("base", inputs, ["base.keras"], lambda _: self._save(model, "base.keras"))
        fields = ("model", "input_size", "epochs", "learning_rate", "batch_size", "seed")
        return self.store.run("base", self._inputs(fields), ["base.keras"], self._train_base)

    def thin(self, base: Artefacts) -> Artefacts:
        """Remove filters down to the budget, rebuild, re-estimate the batch norms."""
        fields = (
            *("target_macs", "target_params", "criterion", "scope", "round_to", "max_removed_fraction", "exclude"),
            *("removal_steps", "recalibration_images", "seed"),
        )
        inputs = self._inputs(fields, base)

        def make(_: Path) -> Mapping[str, Any]:
            model = load_model(base.keras_file)
            images = self.data.sample(self.recipe.recalibration_images, self.recipe.seed)
            thin, plan, _steps = remove_iteratively(
                model,
                Budget(macs=self.recipe.target_macs, params=self.recipe.target_params),
                functools.partial(score_channels, criterion=self.recipe.criterion, seed=self.recipe.seed),
                steps=self.recipe.removal_steps,
                exclude=self.recipe.exclude,
                between=lambda thinner, _: recalibrate_batch_norm(thinner, self.data.batches(images)),
                scope=self.recipe.scope,
                round_to=self.recipe.round_to,
                max_removed_fraction=self.recipe.max_removed_fraction,
            )
            write_text(self.store.folder / "plan.json", plan.to_json())
            self._save(thin, "thin.keras")
            return {"before": plan.before.to_dict(), "after": plan.after.to_dict()}

        return self.store.run("thin", inputs, ["thin.keras", "plan.json"], make)

    def recover(self, thin: Artefacts, base: Artefacts) -> Artefacts:
        """Fine-tune the thin model, pulled towards the labels and towards the uncut model."""
        fields = ("recovery_epochs", "recovery_learning_rate", "distill_weight", "batch_size", "seed")

        def make(work: Path) -> Mapping[str, Any]:
            model = load_model(thin.keras_file)
            teacher = load_model(base.keras_file) if self.recipe.distill_weight else None
            config = self._config(self.recipe.recovery_epochs, self.recipe.recovery_learning_rate)
            facts = self._fit(model, config, work, teacher=teacher)
            return {**facts, **self._save(model, "recovered.keras")}

        return self.store.run("recover", self._inputs(fields, thin, base), ["recovered.keras"], make)

    def sparsify(self, dense: Artefacts, base: Artefacts) -> Artefacts:
        """Zero the smallest of the remaining weights with TF-MOT while the others make up for it."""
        fields = (
            *("weight_sparsity", "sparsity_epochs", "sparsity_learning_rate", "distill_weight"),
            *("batch_size", "seed"),
        )

        def make(work: Path) -> Mapping[str, Any]:
            model = load_model(dense.keras_file)
            teacher = load_model(base.keras_file) if self.recipe.distill_weight else None
            sparse = prune_weights(
                model,
                self.data.train.pair,
                self.data.dev.pair,
                self.data.spec,
                self._config(self.recipe.sparsity_epochs, self.recipe.sparsity_learning_rate),
                work,
                fit=functools.partial(fit, teacher=teacher, pos_weight=self.pos_weight),
                findings=self.data.dataset.findings,
                target_sparsity=self.recipe.weight_sparsity,
                progress=self.news,
            )
            self._save(sparse, "sparse.keras")
            report = measure_sparsity(sparse)
            return {"zeros": report.zeros, "weights": report.weights, "sparsity": report.total}

        return self.store.run("sparsify", self._inputs(fields, dense, base), ["sparse.keras"], make)

    @functools.cached_property
    def pos_weight(self) -> np.ndarray:
        """(findings,) the weights of positives in the loss; the device undoes them."""
        return pos_weights(self.data.train.split.labels)

    def _train_base(self, work: Path) -> Mapping[str, Any]:
        keras.utils.set_random_seed(self.recipe.seed)
        size = self.recipe.input_size
        model = architecture(self.recipe.model)(
            num_classes=len(self.data.dataset.findings), input_shape=(size, size, self.data.spec.channels)
        )
        facts = self._fit(model, self._config(self.recipe.epochs, self.recipe.learning_rate), work)
        return {**facts, **self._save(model, "base.keras")}

    def _fit(self, model: keras.Model, config: FitConfig, work: Path, teacher: Any = None) -> dict[str, Any]:
        if teacher is None:
            config = FitConfig(**{**config.to_dict(), "distill_weight": 0.0})
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
            progress=self.news,
        )
        return {"best_epoch": result.best_epoch, "dev_auroc": result.best_dev_auroc, "history": list(result.history)}

    def _config(self, epochs: int, learning_rate: float) -> FitConfig:
        return FitConfig(
            epochs=epochs,
            batch_size=self.recipe.batch_size,
            learning_rate=learning_rate,
            seed=self.recipe.seed,
            distill_weight=self.recipe.distill_weight,
        )

    def _save(self, model: keras.Model, name: str) -> dict[str, Any]:
        save_model(model, self.store.folder / name)
        return {"cost": measure_cost(model).to_dict()}

    def _inputs(self, fields: tuple[str, ...], *parents: Artefacts) -> dict[str, Any]:
        """What decides a stage: its fields of the recipe, the films, and what it reads."""
        values = {name: getattr(self.recipe, name) for name in fields}
        return {"recipe": values, "films": self.digest, "parents": [parent.sha256 for parent in parents]}

    def _check_fit(self, model: keras.Model) -> None:
        """The model from a file must take these films and answer these findings with logits."""
        spec, findings = self.data.spec, self.data.dataset.findings
        if len(model.inputs) != 1 or len(model.outputs) != 1:
            raise CompressionError(
                f"expected a model with one image in and one row of logits out, got {len(model.inputs)} inputs and "
                f"{len(model.outputs)} outputs"
            )
        if tuple(model.input_shape[1:]) != spec.input_shape:
            raise CompressionError(
                f"the model takes images of {model.input_shape[1:]}, the run makes {spec.input_shape}: give the size "
                "of the model as --input_size"
            )
        if tuple(model.output_shape[1:]) != (len(findings),):
            raise CompressionError(
                f"the model gives {model.output_shape[1:]} outputs, the data set has {len(findings)} findings "
                f"({', '.join(findings)}): give a model with one logit per finding"
            )


def architecture(name: str) -> Any:
    """The builder of a named architecture.

    Raises:
        CompressionError: an unknown name.
    """
    if name not in ARCHITECTURES:
        raise CompressionError(f"expected a model of {', '.join(sorted(ARCHITECTURES))}, got {name!r}")
    return ARCHITECTURES[name]


def weights_hash(model: keras.Model) -> str:
    """A hash of a model's config and weights; the container file around them does not matter."""
    found = hashlib.sha256(json.dumps(model.get_config(), sort_keys=True, default=str).encode())
    for weight in model.get_weights():
        found.update(np.ascontiguousarray(weight).data)
    return found.hexdigest()
