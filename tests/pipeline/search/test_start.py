"""A search with real candidates, small: phantom images, tiny_chexnet, one epoch of everything."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from cxr_compress.data import write_phantom
from cxr_compress.device.modelfile import read_model
from cxr_compress.errors import BudgetError
from cxr_compress.pipeline import SearchSpec, search_recipe
from cxr_compress.pipeline.data import RunData
from cxr_compress.recipe import make_recipe
from cxr_compress.structured import ChannelPlan

RECIPE = make_recipe(
    "tiny_chexnet",
    {
        "dataset": "phantom",
        "force": True,  # hardly trained, it is no better than chance, which a run refuses
        **{"input_size": 32, "epochs": 1, "batch_size": 16, "bootstrap_samples": 20, "weight_sparsity": 0.0},
        **dict.fromkeys(("calibration_images", "reconstruction_images", "recalibration_images"), 16),
        "vary_images": False,
        **{"recovery_epochs": 1, "qat": "never"},
    },
)
# Models of one epoch keep nothing: what is tried, kept and scored is tested here, not how good it is.
LOOSE = SearchSpec(
    macs=(0.6, 0.3), max_auroc_drop=0.9, margin=None, max_loss_rise=None, max_logit_distance=None,
    cheap_epochs=0, refinements=0, finalists=1,
)  # fmt: skip


@pytest.fixture(scope="module")
def phantom(tmp_path_factory):
    folder = tmp_path_factory.mktemp("phantom")
    write_phantom(folder, n_train=120, n_test=30, size=48)
    return folder


@pytest.fixture(scope="module")
def searched(phantom, tmp_path_factory):
    folder = tmp_path_factory.mktemp("search")
    return folder, search_recipe(RECIPE, LOOSE, data_dir=phantom, output_dir=folder)


def test_search_finds_the_smallest_and_reports_it_on_test(searched):
    folder, found = searched
    assert found.recipe.removal.budget.macs == 0.3
    row = found.report["rows"][-1]
    (delivered,) = folder.glob(f"candidates/*/{row['file']}")
    assert read_model(delivered).info.recipe["removal"]["budget"]["macs"] == 0.3
    plan = ChannelPlan.from_json((delivered.parent / "plan.json").read_text())
    assert row["macs"] == plan.after.macs <= 0.3 * plan.before.macs
    assert found.test_looks == 1


def test_search_keeps_every_point_and_the_original_files_once(searched):
    folder, _ = searched
    points = json.loads((folder / "search.json").read_text())["points"]
    assert len(points) == 3, "two cheap ones and one in full"
    assert len(list((folder / "candidates").iterdir())) == 2
    assert len(list(folder.rglob("tiny_chexnet_fp32.tflite"))) == 1
    assert (folder / "search.png").read_bytes().startswith(b"\x89PNG")
    text = (folder / "README.md").read_text()
    assert next(folder.glob("candidates/*/README.md")).parent.name in text
    assert "search.png" in text


def test_search_again_trains_nothing(searched, phantom):
    folder, found = searched
    log: list[str] = []
    again = search_recipe(RECIPE, LOOSE, data_dir=phantom, output_dir=folder, log=log.append)
    assert (again.recipe, again.report) == (found.recipe, found.report)
    assert not [line for line in log if line.endswith(": started")]


def test_search_that_finds_nothing_never_reads_a_test_image(phantom, searched, tmp_path, monkeypatch):
    folder, _ = searched
    strict = replace(LOOSE, max_logit_distance=1e-9)

    def looked(self):
        raise AssertionError("test images were read")

    monkeypatch.setattr(RunData, "test", property(looked))
    with pytest.raises(BudgetError, match="distance of the logits"):
        search_recipe(RECIPE, strict, data_dir=phantom, output_dir=folder)
    assert (folder / "search.png").is_file()
    one = replace(LOOSE, macs=(0.5,))
    with pytest.raises(AssertionError, match="test images were read"):  # control: whoever scores does read them
        search_recipe(
            RECIPE.with_values(recovery_epochs=0),
            one,
            data_dir=phantom,
            output_dir=tmp_path,
            keras_model_file=folder / "base.keras",
        )
