"""The one table of stages: a plug-in's stage runs, resumes, is forecast and counts; what cannot be one is one line."""

from __future__ import annotations

import json
from dataclasses import dataclass

import pytest

from cxr_compress.cli import compress
from cxr_compress.data import PHANTOM_FINDINGS, write_phantom
from cxr_compress.errors import CompressionError
from cxr_compress.models import load_model, save_model, tiny_chexnet
from cxr_compress.pipeline.stage import Stage
from cxr_compress.pipeline.stages import STAGES, register_stage, stages_before
from cxr_compress.pipeline.stages.quantize import Quantize
from cxr_compress.recipe import Section, fields, option, register_section
from tests.nets import enliven


@dataclass(frozen=True)
class DimSection(Section):
    """Dim the head, for a test."""

    factor: float = option(1.0, "Factor of the weights of the last layer.", flag="dim_factor", above=0, common=True)


class Dim(Stage):
    """Multiply the weights of the last layer."""

    name, section, results = "dim", "dim", ("dimmed.keras",)

    def when(self, recipe):
        return recipe.section("dim").factor != 1.0

    def make(self, run, state, work):
        model = load_model(state.model.keras_file)
        model.layers[-1].set_weights([run.recipe.section("dim").factor * one for one in model.layers[-1].get_weights()])
        return {"from": state.model.keras_file.name, **run.save(model, "dimmed.keras")}

    def seconds(self, pace):
        return 3.0


@pytest.fixture
def plugin():
    register_section("dim", DimSection)
    register_stage(Dim(), after="recover")
    yield
    del fields.SECTIONS["dim"]
    STAGES[:] = [stage for stage in STAGES if stage.name != "dim"]


def test_stages_have_names_of_their_own_and_sections_that_recipes_have():
    names = [stage.name for stage in STAGES]
    assert len(set(names)) == len(names)
    assert {stage.section for stage in STAGES} <= set(fields.SECTIONS)
    assert [stage.name for stage in stages_before(Quantize)] == names[: names.index("quantize")]


@pytest.mark.usefixtures("plugin")
def test_stage_of_a_plugin_runs_from_its_flag_and_is_kept(capsys, tmp_path):
    write_phantom(tmp_path / "images", n_train=60, n_test=20, size=32)
    save_model(enliven(tiny_chexnet(len(PHANTOM_FINDINGS), (32, 32, 3))), tmp_path / "small.keras")
    run = [
        *(f"--keras_model_file={tmp_path / 'small.keras'}", "--dataset=phantom", f"--data_dir={tmp_path / 'images'}"),
        *("--match=position", "--preset=unit", "--force", "--calibration_images=16", "--bootstrap_samples=20"),
        *("--target_macs=none", "--weight_sparsity=0", "--quant_type=none", f"--output_dir={tmp_path / 'run'}"),
    ]
    assert compress.main([*run, "--dim_factor=0.5", "--dry_run", "--format=json"]) == 0
    assert json.loads(capsys.readouterr().out)["stages"]["dim"] == 3.0
    assert compress.main([*run, "--dim_factor=0.5"]) == 0
    assert "dim: started" in capsys.readouterr().err
    manifest = json.loads((tmp_path / "run" / "manifests" / "dim.json").read_text())
    assert manifest["inputs"]["recipe"] == {"dim_factor": 0.5, "seed": 0}
    assert manifest["facts"]["from"] == "base.keras"
    before, after = (load_model(tmp_path / "run" / name).layers[-1].get_weights()[0] for name in _KERAS_FILES)
    assert after == pytest.approx(0.5 * before)
    report = json.loads((tmp_path / "run" / "report.json").read_text())
    assert report["facts"]["recipe"]["dim"] == {"factor": 0.5}
    assert "dim" in report["facts"]["seconds"]
    assert compress.main([*run, "--dim_factor=0.5"]) == 0
    assert "dim: done before, kept" in capsys.readouterr().err
    assert compress.main([*run, "--dim_factor=0"]) == 2
    assert "expected dim.factor (--dim_factor) to be above 0; got 0.0" in capsys.readouterr().err
    assert compress.main(["--help"]) == 0
    assert "dim:\n  --dim_factor: Factor of the weights of the last layer. (default: 1.0)" in capsys.readouterr().out


_KERAS_FILES = ("base.keras", "dimmed.keras")


def test_stage_that_cannot_be_is_one_line():
    class Twice(Dim):
        name = "recover"

    with pytest.raises(CompressionError, match=r"a run has a stage 'recover' already: register .*Twice as another"):
        register_stage(Twice(), after="repair")
    with pytest.raises(CompressionError, match=r"the stage before 'dim' to be one of base, look, .*; got 'recovery'"):
        register_stage(Dim(), after="recovery")
    with pytest.raises(CompressionError, match="stage 'dim' reads section 'dim': call register_section first"):
        register_stage(Dim(), after="recover")
