"""What a user can add without a fork: a reader, a criterion and a stage, registered here, used by the commands."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
import pytest

from cxr_compress.cli import compress
from cxr_compress.data import DATASETS, PHANTOM_FINDINGS, Dataset, Request, register_reader, write_phantom
from cxr_compress.data.readers.base import ImageRecord, make_split
from cxr_compress.data.splits import carve_dev
from cxr_compress.errors import CompressionError
from cxr_compress.models import load_model, save_model, tiny_chexnet
from cxr_compress.pipeline import Stage, register_stage
from cxr_compress.pipeline.stages import STAGES
from cxr_compress.recipe import Recipe, Section, fields, option, register_section
from cxr_compress.structured import ChannelPlan, score_channels
from cxr_compress.structured.criteria.base import CRITERIA, Member, ScoringInput, produced_kernels, register_criterion
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


def spread(scoring: ScoringInput) -> list[Member]:
    """The standard deviation of a filter's weights."""
    return [Member.of(sets, rows.std(axis=1)) for sets, rows in produced_kernels(scoring)]


@pytest.fixture
def criterion():
    register_criterion("spread", help="standard deviation of a filter's weights")(spread)
    yield
    del CRITERIA["spread"]


@pytest.fixture
def plugin():
    register_section("dim", DimSection)
    register_stage(Dim(), after="recover")
    yield
    del fields.SECTIONS["dim"]
    STAGES[:] = [stage for stage in STAGES if stage.name != "dim"]


@pytest.fixture
def disks(tmp_path: Path):
    """A folder of images NAME_0.png and NAME_1.png, the latter with a bright disk, and a reader for it."""
    rng = np.random.default_rng(0)
    for number in range(48):
        image = rng.integers(0, 128, (32, 32), np.uint8)
        if number % 2:
            cv2.circle(image, (16, 16), 6, 255, -1)
        cv2.imwrite(str(tmp_path / f"{number // 2:02d}_{number % 2}.png"), image)

    @register_reader("disks", help="drawn disks", options={"finding": "name of the finding, Disk unless given"})
    def read_disks(request: Request) -> Dataset:
        paths = sorted(request.folder.glob("*.png"))
        records = [ImageRecord(path, path.stem[:2], (float(path.stem.endswith("1")),)) for path in paths]
        findings = (request.text("finding", "Disk"),)
        train, dev = carve_dev(make_split("train", records[:32], findings), fraction=0.25, seed=request.seed)
        return Dataset("disks", findings, train, dev, make_split("test", records[32:], findings), "nobody")

    yield tmp_path
    del DATASETS["disks"]


def test_reader_is_in_the_help_and_the_flags_of_every_command(disks: Path, capsys) -> None:
    from cxr_compress.cli import compress, data, evaluate, train

    assert data.main(["--help"]) == 0
    assert "  disks: drawn disks\n    finding: name of the finding, Disk unless given\n" in capsys.readouterr().out
    for command in (compress, evaluate, train):
        assert command.main(["--helpfull"]) == 0
        assert "disks" in capsys.readouterr().out
    chosen = ["--dataset=disks", f"--data_dir={disks}", "--options=finding=Ring"]
    assert data.main(["check", *chosen, "--format=json"]) == 0
    assert json.loads(capsys.readouterr().out)["counts"][0]["finding"] == "Ring"
    assert data.main(["check", *chosen[:2], "--options=findings=Ring"]) == 2
    assert "disks: unknown option 'findings'; it knows allow_one_class, finding" in capsys.readouterr().err


@pytest.mark.usefixtures("criterion", "plugin")
def test_reader_criterion_and_stage_make_a_run_of_cxr_compress(disks: Path, tmp_path_factory, capsys) -> None:
    folder = tmp_path_factory.mktemp("run")
    flags = ["--dataset=disks", f"--data_dir={disks}", "--options=finding=Ring", f"--output_dir={folder}"]
    quick = ["--input_size=32", "--epochs=2", "--recovery_epochs=1", "--weight_sparsity=0", "--qat=never", "--force"]
    chosen = ["--criterion=spread", "--dim_factor=0.5"]
    assert compress.main(["--model=tiny_chexnet", *flags, *quick, *chosen, "--batch_size=8"]) == 0
    report = json.loads((folder / "report.json").read_text())
    assert report["dataset"]["name"] == "disks"
    assert "Ring" in capsys.readouterr().out
    recipe = Recipe.from_json((folder / "recipe.json").read_text())
    assert (recipe.removal.criterion, recipe.section("dim").factor) == ("spread", 0.5)
    plan = ChannelPlan.from_json((folder / "plan.json").read_text())
    assert json.loads((folder / "manifests" / "dim.json").read_text())["facts"]["from"] == "recovered.keras"
    original = load_model(folder / "base.keras")
    analysis = plan.on(original)
    scores = {name: score_channels(original, analysis, criterion=name) for name in ("spread", "l1")}

    def keeps_the_highest(by: str) -> list[bool]:
        """Group by group, whether no channel that went scores higher than one that stayed."""
        gone = {group: np.delete(scores[by][group], stayed) for group, stayed in plan.kept.items()}
        return [scores[by][group][list(stayed)].min() >= gone[group].max() for group, stayed in plan.kept.items()]

    assert all(keeps_the_highest("spread"))
    assert not all(keeps_the_highest("l1")), "control: another criterion keeps other filters"


@pytest.mark.usefixtures("criterion", "plugin")
def test_criterion_and_stage_are_in_the_help(capsys) -> None:
    assert compress.main(["--helpfull"]) == 0
    text = " ".join(capsys.readouterr().out.split())
    assert "spread: standard deviation of a filter's weights" in text
    assert "--dim_factor: Factor of the weights of the last layer." in text


@pytest.mark.usefixtures("criterion", "plugin")
def test_name_that_is_taken_is_one_line(disks: Path) -> None:
    with pytest.raises(CompressionError, match="'spread'"):
        register_criterion("spread", help="again")(spread)
    with pytest.raises(CompressionError, match="'disks'"):
        register_reader("disks", help="again")(lambda request: None)
    with pytest.raises(CompressionError, match="'dim'"):
        register_section("dim", DimSection)
    with pytest.raises(CompressionError, match="'dim'"):
        register_stage(Dim(), after="recover")


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
