"""One printer of progress: a bar on a terminal, lines everywhere else."""

from __future__ import annotations

import io
import itertools

import pytest

from cxr_compress.cli import progress as module
from cxr_compress.cli.progress import Progress


@pytest.fixture
def lines(monkeypatch):
    """Lines that were written; every look at the clock is four seconds after the one before."""
    clock = itertools.count(0.0, 4.0)
    monkeypatch.setattr(module.time, "monotonic", lambda: next(clock))
    return []


def test_progress_without_a_terminal_writes_a_line_now_and_then_and_the_end(lines):
    progress = Progress(lines.append)
    count = progress.counter("decoding test", then="; scoring")
    for done in range(1, 7):
        count(done, 6)
    *between, last = lines
    assert last.endswith(" s] decoding test: 6 images; scoring")
    assert 1 <= len(between) < 5
    assert " of 6 images, about " in between[0]
    assert progress.on_step is None


def test_progress_total_that_nobody_knows_is_left_out(lines):
    count = Progress(lines.append).counter("downloading set.npz", "bytes")
    for done in (1000, 2000, 3000, 4000):
        count(done, 0)
    assert lines[0].endswith("downloading set.npz: 2,000 bytes")


def test_progress_on_a_terminal_is_a_bar_that_a_line_takes_away():
    terminal, lines = io.StringIO(), []
    progress = Progress(lines.append, terminal)
    for batch in (1, 2, 3):
        progress.on_step(1, batch, 4, 0.5)
    assert "epoch 1" in terminal.getvalue()
    progress.log("epoch 1 of 2 is done")
    assert [line.partition("] ")[2] for line in lines] == ["epoch 1 of 2 is done"]
    progress.decoding("dev", 1, 2)
    progress.decoding("dev", 2, 2)
    assert "decoding dev" in terminal.getvalue()
    assert lines[-1].endswith("decoding dev: 2 images")


def test_progress_on_a_terminal_without_tqdm_writes_lines(lines, monkeypatch):
    monkeypatch.setitem(module.sys.modules, "tqdm", None)
    count = Progress(lines.append, io.StringIO()).counter("decoding test")
    for done in range(1, 7):
        count(done, 6)
    assert lines[-1].endswith("decoding test: 6 images")
    assert len(lines) > 1
