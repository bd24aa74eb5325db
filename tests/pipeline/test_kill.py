"""kill -9 at random moments of every stage: restarted until done, the run ends in the bytes of an undisturbed one."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from cxr_compress.data import write_phantom
from cxr_compress.recipe import Recipe, make_recipe
from tests.pipeline.forked_runs import Server

pytestmark = pytest.mark.skipif(not Path("/proc/self/stat").is_file(), reason="needs /proc to watch processes")

SEED = 0
LONG_STAGE_SECONDS = 1.0
EPOCH_ENDED = "epoch 1/2: loss"
RECIPE = make_recipe(
    "tiny_chexnet",
    {
        "dataset": "phantom",
        "force": True,  # hardly trained, it is no better than chance, which a run refuses
        "input_size": 32,
        "batch_size": 16,
        "criterion": "taylor",
        **dict.fromkeys(("epochs", "recovery_epochs", "sparsity_epochs"), 2),
        **dict.fromkeys(("scoring_images", "calibration_images", "recalibration_images", "reconstruction_images"), 16),
        "vary_images": False,
        "bootstrap_samples": 50,
        "qat": "never",
        "seed": SEED,
    },
)


@pytest.fixture(scope="module")
def images(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("phantom")
    write_phantom(folder, n_train=72, n_test=24, size=48)
    return folder


def arguments(recipe: Recipe, images: Path, output: Path, *more: str) -> list[str]:
    file = output.with_suffix(".recipe.json")
    file.write_text(recipe.to_json())
    return [f"--recipe={file}", f"--data_dir={images}", f"--output_dir={output}", *more]


def run_as_a_shell_does(images: Path, output: Path) -> str:
    """What the run says on the way."""
    code = "import sys; from cxr_compress.cli.compress import main; sys.exit(main())"
    command = [sys.executable, "-c", code, *arguments(RECIPE, images, output)]
    done = subprocess.run(command, check=False, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stderr


def outcome(output: Path) -> dict[str, bytes]:
    """What a run must give again: every model file, and the plan."""
    return {path.name: path.read_bytes() for path in [*output.glob("*.tflite"), output / "plan.json"]}


@dataclass(frozen=True)
class Undisturbed:
    """Attributes: output, where it lies; said, its progress."""

    output: Path
    said: str

    @property
    def stages(self) -> dict[str, float]:
        """The stages in the order they ended, with the seconds each took."""
        manifests = sorted((self.output / "manifests").glob("*.json"), key=lambda path: path.stat().st_mtime_ns)
        return {path.stem: json.loads(path.read_text())["seconds"] for path in manifests}

    def moments(self, stage: str) -> list[tuple[str, float]]:
        """When to kill in a stage: after which words, and at most how many seconds later.

        Soon after its start, whatever the machine does besides; of a training after its first epoch too, when there is
        a checkpoint, for nearly all of its time is spent building the graph; of others anywhere, where there is time.
        """
        seconds = self.stages[stage]
        started = f"{stage}: started"
        found = [(started, min(0.1, seconds / 2))]
        if EPOCH_ENDED in self.said.split(started)[1].split(f"{stage}: finished")[0]:
            found.append((EPOCH_ENDED, 0.3))
        elif seconds > LONG_STAGE_SECONDS:
            found.append((started, seconds))
        return found


@pytest.fixture(scope="module")
def undisturbed(images, tmp_path_factory) -> Undisturbed:
    output = tmp_path_factory.mktemp("undisturbed")
    return Undisturbed(output, run_as_a_shell_does(images, output))


def kill_in_stage(
    server: Server,
    images: Path,
    output: Path,
    log: Path,
    *,
    stage: str,
    words: str,
    after: float,
    recipe: Recipe = RECIPE,
) -> bool:
    """Run until some words and some seconds more, then kill; whether the kill came before the stage's end."""
    run = server.start(arguments(recipe, images, output), log)
    begun = run.said(words)
    time.sleep(after if begun else 0)
    if run.alive():
        os.kill(run.number, signal.SIGKILL)
    assert run.wait() in (-signal.SIGKILL, 0), log.read_text()[-2000:]
    return begun and not (output / "manifests" / f"{stage}.json").exists()


def test_run_killed_at_random_moments_of_every_stage_ends_in_the_bytes_of_an_undisturbed_one(
    undisturbed, images, tmp_path
):
    rng = np.random.default_rng(SEED)
    output, hits = tmp_path / "killed", dict.fromkeys(undisturbed.stages, 0)
    with Server() as server:
        for stage in undisturbed.stages:
            for number, (words, latest) in enumerate(undisturbed.moments(stage)):
                log, after = tmp_path / f"{stage}-{number}.log", float(rng.uniform(0, latest))
                hits[stage] += kill_in_stage(server, images, output, log, stage=stage, words=words, after=after)
    # Stages of milliseconds may be over before the signal arrives.
    assert sum(found > 0 for found in hits.values()) >= 0.6 * len(hits), f"too few kills hit their stage: {hits}"
    run_as_a_shell_does(images, output)
    assert outcome(output) == outcome(undisturbed.output)
    left = [path.name for path in output.rglob(".tmp-*")]
    assert len(left) <= sum(hits.values()), "at most the file that was being written when a kill came"
    assert list((output / "work").glob("*")) == [], "checkpoints are removed when their stage is done"


def test_run_killed_while_it_trains_with_rounding_ends_in_the_bytes_of_an_undisturbed_one(
    undisturbed, images, tmp_path
):
    """The stage that a recipe needs rarely, after all the others, which are taken over."""
    recipe = RECIPE.with_values(qat="always", qat_epochs=2)
    calm, killed = tmp_path / "calm", tmp_path / "killed"
    for output in (calm, killed):
        shutil.copytree(undisturbed.output, output)
    with Server() as server:
        first = server.start(arguments(recipe, images, calm), tmp_path / "calm.log")
        assert first.wait() == 0, (tmp_path / "calm.log").read_text()[-2000:]
        for number, words in enumerate(("qat: started", EPOCH_ENDED)):
            log = tmp_path / f"qat-{number}.log"
            hit = kill_in_stage(server, images, killed, log, stage="qat", words=words, after=0.1, recipe=recipe)
            assert hit, log.read_text()[-2000:]
        last = server.start(arguments(recipe, images, killed), tmp_path / "last.log")
        assert last.wait() == 0
    said = (tmp_path / "last.log").read_text()
    assert "epoch 2/2: loss" in said
    assert EPOCH_ENDED not in said, "the first epoch was kept, not trained again"
    assert outcome(killed) == outcome(calm)
    # The control: this stage decided the int8 file.
    assert outcome(calm) != outcome(undisturbed.output)


def test_run_twice_gives_the_same_plan_and_bytes_and_another_seed_does_not(undisturbed, images, tmp_path):
    """Without training, which the test above repeats in other processes: the seed decides which filters go."""
    quick = RECIPE.with_values(criterion="random", recovery_epochs=0, weight_sparsity=0.0)
    base = f"--keras_model_file={undisturbed.output / 'base.keras'}"
    seeds = (SEED, SEED, SEED + 1)
    outputs = [tmp_path / str(number) for number in range(len(seeds))]
    with Server() as server:
        runs = [
            server.start(arguments(quick.with_values(seed=seed), images, output, base), output.with_suffix(".log"))
            for seed, output in zip(seeds, outputs, strict=True)
        ]
        assert [run.wait() for run in runs] == [0, 0, 0]
    first, again, other = map(outcome, outputs)
    assert again == first
    assert len(first) > 3
    # The control: the comparison sees the plan and every compressed file; the original ones hold the same weights.
    assert set(other) == set(first)
    assert all(other[name] != first[name] for name in first if "plan" in name or "_m50_" in name)
