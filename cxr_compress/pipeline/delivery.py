"""From a Keras model to files that ship: convert, give each file thresholds of its own, and check what it promises."""

from __future__ import annotations

import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from cxr_compress.device.atomic import write_bytes
from cxr_compress.device.classifier import Classifier
from cxr_compress.device.modelfile import ModelFile, ModelInfo, pack_model
from cxr_compress.errors import CompressionError
from cxr_compress.evaluate import Calibration, choose_calibration
from cxr_compress.lite import LiteModel, audit, convert
from cxr_compress.models.keras_file import load_model
from cxr_compress.pipeline.films import RunData
from cxr_compress.pipeline.store import Artefacts, News, StageStore
from cxr_compress.recipe import Recipe

# Weight pruning cuts a whole number of weights per layer; over a network that is far below this.
SPARSITY_TOLERANCE = 0.005


@dataclass(frozen=True)
class Delivery:
    """Converts the models of a run.

    Attributes:
        recipe: the choices.
        data: training films calibrate, dev films choose thresholds.
        digest: the hash of train and dev films.
        store: where files go.
        pos_weight: (findings,) what the loss counted positives with; the files undo it.
        news: progress lines.
    """

    recipe: Recipe
    data: RunData
    digest: str
    store: StageStore
    pos_weight: np.ndarray
    news: News

    def export(self, stage: str, model: Artefacts, names: Mapping[str, str], sparsity: float = 0.0) -> Artefacts:
        """Convert one Keras model to several files.

        Args:
            stage: its name in the run.
            model: holds one .keras file.
            names: quant type -> name of the file without its ending.
            sparsity: what the kernels of every file must have at least, and those of the float file exactly.

        Raises:
            CompressionError: a file misses the sparsity, or computes in float where it must not.
        """
        inputs = {
            "names": dict(names),
            "sparsity": sparsity,
            "recipe": self.recipe.to_dict(),
            "films": self.digest,
            "parents": model.sha256,
        }

        def make(_: Path) -> Mapping[str, Any]:
            keras_model = load_model(model.keras_file)
            images = self.data.sample(self.recipe.calibration_images, self.recipe.seed + 1)
            made = convert(
                keras_model,
                list(names),
                calibration=self.data.batches(images),
                calibration_steps=self.recipe.calibration_images,
                progress=self.news,
            )
            facts = {}
            for quant_type, lite in made.items():
                check_sparsity(lite, sparsity)
                info = self._describe(lite, names[quant_type], model)
                write_bytes(self.store.folder / f"{names[quant_type]}.tflite", pack_model(lite.content, info))
                facts[names[quant_type]] = lite.audit.to_dict()
            return facts

        return self.store.run(stage, inputs, [f"{name}.tflite" for name in names.values()], make)

    def _describe(self, lite: LiteModel, name: str, model: Artefacts) -> ModelInfo:
        """What the file says about itself; thresholds are chosen on dev, from this very file's logits."""
        findings = self.data.dataset.findings
        labels = self.data.dev.split.labels
        count = len(findings)
        plain = self._info(lite, name, model, Calibration((1.0,) * count, (0.0,) * count, (0.5,) * count))
        classifier = Classifier(ModelFile(Path(name), lite.content, plain, len(lite.content), ""))
        logits = np.concatenate([classifier.logits(batch) for batch in self.data.batches(self.data.dev.images)])
        return self._info(lite, name, model, choose_calibration(labels, logits, self.pos_weight))

    def _info(self, lite: LiteModel, name: str, model: Artefacts, chosen: Calibration) -> ModelInfo:
        dataset = self.data.dataset
        return ModelInfo(
            model_name=name,
            labels=tuple(dataset.findings),
            preprocess=self.data.spec,
            logit_slope=chosen.slope,
            logit_offset=chosen.offset,
            thresholds=chosen.thresholds,
            threshold_source=(
                f"largest sensitivity + specificity on {len(self.data.dev.split)} dev films of {dataset.name}, "
                "patients held out of training; choose your own before any use"
            ),
            quant_type=lite.quant_type,
            parents=dict(model.sha256),
            training_data=dataset.name,
            attribution=dataset.attribution,
            synthetic=dataset.synthetic,
            recipe=self.recipe.to_dict(),
        )


def check_sparsity(lite: LiteModel, wanted: float) -> None:
    """Fail when a file has fewer zeros among its kernels than was asked for, or a float file more.

    Raises:
        CompressionError: says both numbers.
    """
    found = lite.audit.sparsity.fraction
    # Rounding to int8 adds zeros, never removes one; a float file must be what was asked, not more.
    exact = lite.quant_type in ("none", "fp16")
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
