"""A cache survives every kind of end: Ctrl-C, kill -9, a second builder, a full disk."""

from __future__ import annotations

import errno
import json
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from cxr_compress.data import cache_file
from cxr_compress.data.cache import build_cache, decode_split, open_cache, verify_cache
from cxr_compress.device.preprocess import PreprocessSpec
from cxr_compress.errors import DataError
from tests.data.cache_images import IMAGE, SPEC, images_of, names_in, replace_image

# Builds a cache in a process of its own; given images per chunk and bytes per file at most (0: no limit).
BUILD = """
import json, resource, signal, sys
from pathlib import Path
import numpy as np
from cxr_compress.data import cache_file
from cxr_compress.data.cache import build_cache
from cxr_compress.data.splits import Split
from cxr_compress.device.preprocess import PreprocessSpec
from cxr_compress.errors import CompressionError
folder, cache, images_per_chunk, limit = sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4])
cache_file.CHUNK_IMAGES = images_per_chunk
paths = tuple(sorted(Path(folder).rglob("*.png")))
split = Split("train", paths, np.zeros((len(paths), 1), np.float32), tuple(p.stem for p in paths))
if limit:
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, resource.RLIM_INFINITY))
print("start", flush=True)
try:
    told = lambda done, total: print(done, flush=True)
    entry = build_cache(split, PreprocessSpec(16, 16), cache, workers=1, progress=told)
except CompressionError as error:
    sys.exit(f"refused: {error}")
print(json.dumps({"decoded": entry.decoded, "sha256": entry.sha256}))
"""


@pytest.fixture
def small_chunks(monkeypatch) -> None:
    monkeypatch.setattr(cache_file, "CHUNK_IMAGES", 8)


def test_ctrl_c_leaves_a_state_from_which_the_next_run_goes_on(tmp_path, small_chunks) -> None:
    split = images_of(tmp_path / "images", 100)

    def interrupt(done: int, total: int) -> None:
        if done >= 60:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        build_cache(split, SPEC, tmp_path / "cache", workers=1, progress=interrupt)
    assert names_in(tmp_path / "cache") == [".journal", ".partial"]
    entry = build_cache(split, SPEC, tmp_path / "cache")
    assert entry.decoded == 100 - 56  # seven chunks of 8 were done, the eighth was being decoded
    np.testing.assert_array_equal(np.load(entry.path), decode_split(split, SPEC))


@pytest.mark.parametrize("damage", ["torn line", "flipped bit", "other decoder", "lost data", "images changed"])
def test_resume_trusts_only_chunks_that_are_there_and_true(tmp_path, damage, small_chunks) -> None:
    split = images_of(tmp_path / "images")
    split.paths[29].rename(tmp_path / "aside.png")
    with pytest.raises(DataError, match="cannot be used"):
        build_cache(split, SPEC, tmp_path / "cache")
    (tmp_path / "aside.png").rename(split.paths[29])
    (journal,), (partial,) = ((tmp_path / "cache").glob(f"*.{end}") for end in ("journal", "partial"))
    decoded = {"torn line": 14, "flipped bit": 14, "other decoder": 30, "lost data": 30, "images changed": 14}[damage]
    if damage == "torn line":
        journal.write_bytes(journal.read_bytes()[:-20])
    elif damage == "flipped bit":
        content = bytearray(partial.read_bytes())
        content[128 + 9 * IMAGE] ^= 4  # in image 9, so chunk 1
        partial.write_bytes(content)
    elif damage == "other decoder":
        journal.write_text(journal.read_text().replace('"opencv": "', '"opencv": "0.'))
    elif damage == "lost data":
        partial.unlink()
    else:
        replace_image(split.paths[0], seed=99)
    entry = build_cache(split, SPEC, tmp_path / "cache")
    assert entry.decoded == decoded
    np.testing.assert_array_equal(np.load(entry.path), decode_split(split, SPEC))


def test_crash_between_the_last_two_steps_costs_nothing(tmp_path, monkeypatch, small_chunks) -> None:
    split = images_of(tmp_path / "images")

    def crash(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(cache_file.Manifest, "to_json", crash)
        with pytest.raises(KeyboardInterrupt):
            build_cache(split, SPEC, tmp_path / "cache")
    assert names_in(tmp_path / "cache") == [".journal", ".npy"]
    assert build_cache(split, SPEC, tmp_path / "cache").decoded == 0
    np.testing.assert_array_equal(open_cache(split, SPEC, tmp_path / "cache"), decode_split(split, SPEC))


def start_build(images: Path, cache: Path, *, chunk: int = 8, limit: int = 0) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", BUILD, str(images), str(cache), str(chunk), str(limit)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def test_kill_9_at_random_moments_ends_in_the_bytes_of_an_undisturbed_run(tmp_path) -> None:
    images_of(tmp_path / "images", 160)
    undisturbed = start_build(tmp_path / "images", tmp_path / "calm")
    calm = json.loads(undisturbed.communicate(timeout=60)[0].splitlines()[-1])
    moments = random.Random(0)
    kills = 0
    for _ in range(6):
        with start_build(tmp_path / "images", tmp_path / "cache") as process:
            # After some images (they come 8 at a time), then a little later: while a chunk is written or noted.
            for _ in range(moments.randint(1, 6)):
                process.stdout.readline()
            time.sleep(moments.uniform(0, 0.003))
            process.send_signal(signal.SIGKILL)
            process.communicate(timeout=60)
            kills += process.returncode == -signal.SIGKILL
    assert kills >= 3
    done = json.loads(start_build(tmp_path / "images", tmp_path / "cache").communicate(timeout=60)[0].splitlines()[-1])
    assert done["sha256"] == calm["sha256"]
    assert done["decoded"] < 160  # it went on, and did not start anew
    # A kill between a file's first byte and its renaming leaves it under its temporary name, which has no suffix; one
    # between the last file and the end of the lock leaves the empty lock, which keeps nobody out.
    assert [suffix for suffix in names_in(tmp_path / "cache") if suffix not in ("", ".lock")] == [".json", ".npy"]


def test_two_processes_at_once_build_one_cache_between_them(tmp_path) -> None:
    split = images_of(tmp_path / "images", 160)
    both = [start_build(tmp_path / "images", tmp_path / "cache") for _ in range(2)]
    outcomes = [json.loads(process.communicate(timeout=60)[0].splitlines()[-1]) for process in both]
    assert sorted(outcome["decoded"] for outcome in outcomes) == [0, 160]
    assert outcomes[0]["sha256"] == outcomes[1]["sha256"]
    assert names_in(tmp_path / "cache") == [".json", ".npy"]
    (data,) = (tmp_path / "cache").glob("train_*.npy")
    np.testing.assert_array_equal(np.load(data, mmap_mode="r"), decode_split(split, SPEC))


def test_file_size_limit_is_one_clear_line_before_anything_is_decoded(tmp_path) -> None:
    images_of(tmp_path / "images", 160)
    limited = start_build(tmp_path / "images", tmp_path / "cache", limit=100 * IMAGE)
    out, words = limited.communicate(timeout=60)
    assert (limited.returncode, out) == (1, "start\n")
    assert f"it needs {160 * IMAGE + 128:,} more bytes" in words
    assert "(a file may not grow that large here)" in words
    assert words.count("\n") == 1
    done = json.loads(start_build(tmp_path / "images", tmp_path / "cache").communicate(timeout=60)[0].splitlines()[-1])
    assert done["decoded"] == 160


def test_disk_full_in_mid_cache_is_one_clear_line_and_keeps_what_is_done(tmp_path, monkeypatch, small_chunks) -> None:
    split = images_of(tmp_path / "images")
    synced: list[int] = []

    def sync(descriptor: int) -> None:
        synced.append(descriptor)
        if len(synced) == 8:  # one of the journal's first line, two of each chunk
            raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr("os.fsync", sync)
        with pytest.raises(
            DataError, match=r"it needs 1,664 more bytes, .* free; 3 of 4 parts are done and kept; free"
        ):
            build_cache(split, SPEC, tmp_path / "cache", workers=1)
    assert names_in(tmp_path / "cache") == [".journal", ".partial"]
    assert build_cache(split, SPEC, tmp_path / "cache").decoded == 6


def test_disk_without_room_is_refused_before_anything_is_decoded(tmp_path, monkeypatch) -> None:
    split = images_of(tmp_path / "images")
    old = build_cache(split, PreprocessSpec(8, 8), tmp_path / "cache")
    usage = shutil.disk_usage(tmp_path)._replace(free=1000)
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: usage)
    seen: list[int] = []
    with pytest.raises(DataError, match=r"no room .*: it needs 7,808 more bytes, 1,000 are free; free some space or"):
        build_cache(split, SPEC, tmp_path / "cache", progress=lambda done, total: seen.append(done))
    assert not seen
    assert verify_cache(split, PreprocessSpec(8, 8), tmp_path / "cache").sha256 == old.sha256


@pytest.fixture
def tiny_disk(tmp_path):
    """A real file system of 512 KB."""
    folder = tmp_path / "tiny"
    folder.mkdir()
    mounted = (
        shutil.which("mount")
        and not subprocess.run(
            ["mount", "-t", "tmpfs", "-o", "size=512k", "none", str(folder)], check=False, capture_output=True
        ).returncode
    )
    if not mounted:
        pytest.skip("may not mount a tmpfs here; a full disk is imitated above")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


@pytest.mark.filterwarnings("ignore:.* images read of train have fewer pixels")  # of 24 px, cached at 48
def test_disk_that_fills_in_mid_cache_keeps_the_old_cache_and_the_chunks_that_are_done(
    tmp_path, tiny_disk, small_chunks
) -> None:
    split = images_of(tmp_path / "images", 100)
    spec = PreprocessSpec(48, 48)  # 225 KB for all images: less than is free at first
    old = build_cache(split, SPEC, tiny_disk)

    def someone_else_fills_the_disk(done: int, total: int) -> None:
        if done == 48:
            (tiny_disk / "other").write_bytes(b"x" * (shutil.disk_usage(tiny_disk).free - 20_000))

    with pytest.raises(
        DataError, match=r"no room .*: it needs [\d,]+ more bytes, [\d,]+ are free; \d+ of 13 parts are"
    ):
        build_cache(split, spec, tiny_disk, workers=1, progress=someone_else_fills_the_disk)
    assert verify_cache(split, SPEC, tiny_disk).sha256 == old.sha256
    (tiny_disk / "other").unlink()
    entry = build_cache(split, spec, tiny_disk)
    assert 0 < entry.decoded < 100
    np.testing.assert_array_equal(np.load(entry.path), decode_split(split, spec))
