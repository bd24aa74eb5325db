"""The stage store: what stands is kept, what changed is made again, a kill leaves nothing half-done."""

from __future__ import annotations

import pytest

from cxr_compress.files import write_text
from cxr_compress.pipeline.store import StageStore


class Stage:
    """A stage that writes its inputs to a file and counts how often it ran."""

    def __init__(self, folder, file="out.txt"):
        self.log = []
        self.file = file
        self.store = StageStore(folder, self.log.append)
        self.folder = folder
        self.runs = 0

    def __call__(self, **inputs):
        def make(work):
            self.runs += 1
            work.mkdir(parents=True)
            write_text(self.folder / self.file, repr(inputs))
            if "fails" in inputs:
                raise inputs["fails"]
            return {"answer": 42}

        return self.store.run("stage", inputs, [self.file], make)


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
def test_store_damaged_artifact_runs_again(tmp_path, damage):
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


def test_store_file_that_somebody_changed_is_kept_beside_and_never_over_another(tmp_path):
    stage = Stage(tmp_path, "plan.json")
    stage(a=1)
    for number, name in enumerate(("plan.edited.json", "plan.edited2.json"), 2):
        (tmp_path / "plan.json").write_text(name)
        stage.log.clear()
        stage(a=1)
        assert stage.runs == number
        assert (tmp_path / name).read_text() == name
        assert (tmp_path / "plan.json").read_text() == "{'a': 1}"
        assert stage.log[0] == f"plan.json was changed since this run made it: kept as {name}, and made again"
    assert (tmp_path / "plan.edited.json").read_text() == "plan.edited.json"


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_store_what_a_stage_itself_left_is_not_taken_for_a_change_by_somebody(tmp_path, error):
    stage = Stage(tmp_path, "plan.json")
    stage(a=1)
    for _ in range(2):
        with pytest.raises(error):
            stage(fails=error())
        for left in (tmp_path / "work").glob("stage-*"):
            left.rmdir()
    stage(a=1)
    assert not list(tmp_path.glob("*edited*"))
    assert not list((tmp_path / "work").iterdir())


def test_store_change_by_somebody_after_a_failed_stage_is_kept(tmp_path):
    stage = Stage(tmp_path, "plan.json")
    stage(a=1)
    with pytest.raises(ValueError, match="wrong"):
        stage(fails=ValueError("wrong"))
    (tmp_path / "plan.json").write_text("mine")
    stage(a=1)
    assert (tmp_path / "plan.edited.json").read_text() == "mine"


def test_store_results_of_other_choices_are_replaced_with_a_word(tmp_path):
    stage = Stage(tmp_path, "report.json")
    stage(a=1)
    stage(a=1)
    assert not [line for line in stage.log if "replaces" in line]
    stage(a=2)
    assert "stage: replaces report.json, which this run made before with other choices" in stage.log
    inner = Stage(tmp_path / "inner", "pruned.keras")
    inner(a=1)
    inner(a=2)
    assert not [line for line in inner.log if "replaces" in line], "of what is on the way nobody asks"
