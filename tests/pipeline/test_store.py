"""The stage store: what stands is kept, what changed is made again, a kill leaves nothing half-done."""

from __future__ import annotations

import pytest

from cxr_compress.device.atomic import write_text
from cxr_compress.pipeline.store import StageStore


class Stage:
    """A stage that writes its inputs to a file and counts how often it ran."""

    def __init__(self, folder):
        self.store = StageStore(folder, lambda line: None)
        self.folder = folder
        self.runs = 0

    def __call__(self, **inputs):
        def make(work):
            self.runs += 1
            work.mkdir(parents=True)
            write_text(self.folder / "out.txt", repr(inputs))
            return {"answer": 42}

        return self.store.run("stage", inputs, ["out.txt"], make)


def test_store_same_inputs_run_once(tmp_path):
    stage = Stage(tmp_path)
    first = stage(a=1)
    assert stage(a=1) == first
    assert stage.runs == 1
    assert stage.store.facts("stage") == {"answer": 42}


def test_store_changed_input_runs_again(tmp_path):
    stage = Stage(tmp_path)
    first = stage(a=1)
    second = stage(a=2)
    assert stage.runs == 2
    assert first.sha256 != second.sha256


@pytest.mark.parametrize("damage", [lambda path: path.unlink(), lambda path: path.write_text("other")])
def test_store_damaged_artefact_runs_again(tmp_path, damage):
    stage = Stage(tmp_path)
    first = stage(a=1)
    damage(tmp_path / "out.txt")
    assert stage(a=1).sha256 == first.sha256
    assert stage.runs == 2


def test_store_half_written_manifest_runs_again(tmp_path):
    stage = Stage(tmp_path)
    stage(a=1)
    manifest = tmp_path / "manifests" / "stage.json"
    manifest.write_text(manifest.read_text()[:40])
    stage(a=1)
    assert stage.runs == 2


def test_store_failed_stage_keeps_its_checkpoints_and_a_finished_one_removes_them(tmp_path):
    store = StageStore(tmp_path, lambda line: None)
    seen = []

    def make(work):
        seen.append((work / "checkpoint").exists())
        work.mkdir(parents=True, exist_ok=True)
        (work / "checkpoint").write_text("half")
        if len(seen) == 1:
            raise KeyboardInterrupt
        write_text(tmp_path / "out.txt", "whole")

    with pytest.raises(KeyboardInterrupt):
        store.run("stage", {}, ["out.txt"], make)
    store.run("stage", {}, ["out.txt"], make)
    assert seen == [False, True]
    assert not list((tmp_path / "work").iterdir())
