"""The stages of the one algorithm: what each reads, makes and must leave true."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from cxr_compress.device.atomic import write_text
from cxr_compress.device.cost_table import CostTable
from cxr_compress.errors import CompressionError
from cxr_compress.keras2 import keras
from cxr_compress.models import ModelAbout, chexnet, tiny_chexnet
from cxr_compress.models.keras_file import load_model, save_model
from cxr_compress.pipeline.costing import make_probe_pack, measure_costs
from cxr_compress.pipeline.films import RunData
from cxr_compress.pipeline.store import Artefacts, StageStore
from cxr_compress.pipeline.thinning import Thinning, sensitivity_files, thinning_fields
from cxr_compress.recipe import Recipe
from cxr_compress.sparsity import measure_sparsity, prune_weights
from cxr_compress.structured import measure_cost
from cxr_compress.structured.sensitivity_cache import model_hash
from cxr_compress.train import FitConfig, fit, pos_weights, weighted_bce

ARCHITECTURES = {"chexnet": chexnet, "tiny_chexnet": tiny_chexnet}
# Ranges hardly change the size of a file or the time of a kernel: a few films do.
_PRICING_IMAGES = 16


@dataclass(frozen=True)
class Stages:
    """The Keras part of a run; every method is one stage and gives its artefacts.

    Attributes:
        recipe: the choices.
        data: the films.
        digest: the hash of train and dev films: what every stage here depends on.
        store: where artefacts go.
        about: what the model to start from says of itself.
    """

    recipe: Recipe
    data: RunData
    digest: str
    store: StageStore
    news: Any
    about: ModelAbout | None = None

    def base(self, keras_model_file: Path | None) -> Artefacts:
        """The uncut model: trained here, or taken from a file and checked against the data."""
        if keras_model_file is not None:
            model = load_model(keras_model_file)
            self._check_fit(model)
            inputs = {"weights": model_hash(model)}
            return self.store.run("base", inputs, ["base.keras"], lambda _: self._save(model, "base.keras"))
        fields = ("model", "input_size", "epochs", "learning_rate", "batch_size", "seed")
        return self.store.run("base", self._inputs(fields), ["base.keras"], self._train_base)

    def price(
        self, base: Artefacts, int8_file: Callable[[], Path], latency_table: CostTable | None
    ) -> CostTable | None:
        """What bytes and milliseconds are spent on, where the recipe bounds them; times are measured only once."""
        want = {name: name in self.recipe.budget for name in ("tflite_bytes", "latency_ms")}
        if not any(want.values()):
            return None
        given = latency_table.to_json() if latency_table is not None and want["latency_ms"] else None
        inputs = {**self._inputs(("quant_type", "seed"), base), "want": want, "table": given}

        content = int8_file().read_bytes() if want["tflite_bytes"] else None

        def make(_: Path) -> None:
            table = measure_costs(
                load_model(base.keras_file),
                self.data.batches(self.data.sample(_PRICING_IMAGES, self.recipe.seed)),
                self.recipe.quant_type,
                want_bytes=want["tflite_bytes"],
                want_latency=want["latency_ms"],
                latency_table=latency_table if want["latency_ms"] else None,
                int8_file=content,
                progress=self.news,
            )
            write_text(self.store.folder / "costs.json", table.to_json())

        made = self.store.run("price", inputs, ["costs.json"], make)
        return CostTable.from_json(made.paths["costs.json"].read_text(encoding="utf-8"))

    def probes(self, base: Artefacts, path: Path) -> None:
        """What a device needs to time the layers of the uncut model, as one file."""
        images = self.data.batches(self.data.sample(_PRICING_IMAGES, self.recipe.seed))
        make_probe_pack(
            load_model(base.keras_file), path, self.recipe.quant_type, calibration=images, progress=self.news
        )

    def thin(self, base: Artefacts, cost_table: CostTable | None) -> Artefacts:
        """Remove filters down to the budget, rebuild, repair without labels."""
        table = None if cost_table is None else cost_table.to_json()
        inputs = {**self._inputs((), base), "recipe": thinning_fields(self.recipe), "costs": table}

        def make(_: Path) -> Mapping[str, Any]:
            loss = weighted_bce(self.pos_weight) if self.recipe.criterion == "taylor" else None
            thinning = Thinning(self.recipe, self.data, self.store.folder, self.news, loss, cost_table)
            thinned = thinning.run(load_model(base.keras_file))
            write_text(self.store.folder / "plan.json", thinned.plan.to_json())
            self._save(thinned.model, "thin.keras")
            return thinned.facts

        return self.store.run("thin", inputs, ["thin.keras", "plan.json", *sensitivity_files(self.recipe)], make)

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
        """(findings,) the weights of positives in the loss, those of the uncut model; the device undoes them."""
        if self.about is not None and self.about.pos_weight is not None:
            return np.array(self.about.pos_weight, np.float32)
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
            config = dataclasses.replace(config, distill_weight=0.0)
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
        dataset = self.data.dataset
        about = ModelAbout(
            findings=dataset.findings,
            preprocess=self.data.spec,
            dataset=dataset.name,
            attribution=dataset.attribution,
            pos_weight=tuple(float(weight) for weight in self.pos_weight),
        )
        save_model(model, self.store.folder / name, about=about)
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
