from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from cxr_compress.errors import CompressionError
from cxr_compress.files import check_writable, make_folder, special_kind, write_bytes, write_text


def test_write_bytes_new_and_existing_file_holds_exactly_the_data(tmp_path: Path) -> None:
    path = tmp_path / "model.tflite"
    for data in (b"first, the longer one", b"second", b""):
        write_bytes(path, data)
        assert path.read_bytes() == data
    assert os.listdir(tmp_path) == ["model.tflite"]  # noqa: PTH208 - names only


def test_write_text_non_ascii_is_utf8_with_the_line_ends_given(tmp_path: Path) -> None:
    write_text(tmp_path / "labels.txt", "Epanchement pleural é\nb\r\n")
    assert (tmp_path / "labels.txt").read_bytes() == "Epanchement pleural é\nb\r\n".encode()


def test_write_bytes_new_file_follows_the_umask(tmp_path: Path) -> None:
    previous = os.umask(0o022)
    try:
        write_bytes(tmp_path / "model.tflite", b"x")
    finally:
        os.umask(previous)
    assert (tmp_path / "model.tflite").stat().st_mode & 0o777 == 0o644


def test_write_bytes_full_disk_keeps_the_old_file_and_says_what_to_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "model.tflite"
    path.write_bytes(b"old")

    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(CompressionError, match=r"could not write .*model\.tflite: No space left.*free some space"):
        write_bytes(path, b"new")
    assert path.read_bytes() == b"old"
    assert [entry.name for entry in tmp_path.iterdir()] == ["model.tflite"]


def test_write_bytes_interrupted_keeps_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "model.tflite"
    path.write_bytes(b"old")

    def interrupt(_: int) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "fsync", interrupt)
    with pytest.raises(KeyboardInterrupt):
        write_bytes(path, b"new")
    assert path.read_bytes() == b"old"
    assert [entry.name for entry in tmp_path.iterdir()] == ["model.tflite"]


def test_write_bytes_missing_folder_says_so(tmp_path: Path) -> None:
    with pytest.raises(CompressionError, match=r"No such file or directory; create its folder first"):
        write_bytes(tmp_path / "missing" / "model.tflite", b"x")


def test_write_bytes_over_a_folder_says_so(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    with pytest.raises(CompressionError, match=r"could not write .*out: .*; a folder has that name"):
        write_bytes(tmp_path / "out", b"x")
    assert [entry.name for entry in tmp_path.iterdir()] == ["out"]


def test_write_bytes_a_pipe_a_device_or_a_link_to_one_is_left_alone(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "null").symlink_to("/dev/null")
    for name, kind in (("pipe", "a pipe"), ("null", "a device")):
        assert special_kind(tmp_path / name) == kind
        with pytest.raises(
            CompressionError, match=f"could not write .*{name}: it is {kind}; choose the name of a file"
        ):
            write_bytes(tmp_path / name, b"x")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["null", "pipe"]
    assert special_kind("/dev/null") == "a device"


def test_write_bytes_over_a_link_leaves_the_file_that_it_leads_to(tmp_path: Path) -> None:
    (tmp_path / "mine").write_bytes(b"mine")
    (tmp_path / "link").symlink_to(tmp_path / "mine")
    write_bytes(tmp_path / "link", b"new")
    assert (tmp_path / "mine").read_bytes() == b"mine"
    assert (tmp_path / "link").read_bytes() == b"new"


def test_check_writable_says_why_not_and_leaves_nothing(tmp_path: Path) -> None:
    check_writable(tmp_path)
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(CompressionError, match="does not exist: create it first"):
        check_writable(tmp_path / "none")
    check_writable(tmp_path / "none" / "below", to_be_made=True)
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "file").write_text("mine")
    with pytest.raises(CompressionError, match="file is a file, expected a folder"):
        check_writable(tmp_path / "file" / "below", to_be_made=True)
    with pytest.raises(CompressionError, match=r"nothing can be written into /proc: .*; choose a folder you may write"):
        check_writable("/proc")


def test_make_folder_where_a_file_stands_is_one_clear_error(tmp_path: Path) -> None:
    (tmp_path / "taken").write_text("")
    with pytest.raises(CompressionError, match=r"could not create the folder .*taken.*; choose one you may write to"):
        make_folder(tmp_path / "taken" / "below")


def test_make_folder_that_is_there_already_is_given_back(tmp_path: Path) -> None:
    assert make_folder(tmp_path / "a" / "b") == make_folder(tmp_path / "a" / "b") == tmp_path / "a" / "b"
