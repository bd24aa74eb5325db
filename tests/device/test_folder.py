"""A folder of images: all of it is read, or listed as not read."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from cxr_compress.device.decode import IMAGE_SUFFIXES
from cxr_compress.device.sources import look_into
from cxr_compress.errors import DataError
from tests.device.images import draw_image, png

# The first two elements of a DICOM file: (0002,0000), a number of 32 bits, and (0002,0001), two bytes.
ELEMENTS = b"\2\0\0\0UL\4\0\x40\0\0\0" + b"\2\0\1\0OB\0\0\2\0\0\0\0\1"


def names(folder: Path) -> list[str]:
    return [path.relative_to(folder).as_posix() for path in look_into(folder).images]


def left_out(folder: Path) -> dict[str, str]:
    return {entry.path.relative_to(folder).as_posix(): entry.kind for entry in look_into(folder).not_read}


@pytest.mark.parametrize("suffix", [*IMAGE_SUFFIXES, ".PNG", ".Tif", ".IMA", ".DIC"])
def test_look_into_takes_every_suffix_of_an_image_in_any_case(tmp_path: Path, suffix: str) -> None:
    (tmp_path / f"image{suffix}").write_bytes(b"x")
    assert names(tmp_path) == [f"image{suffix}"]


@pytest.mark.parametrize("name", ["IM0001", "1.2.840.113", "image.bak", "image.txt", "image.v3", "image."])
def test_look_into_takes_dicom_under_any_name_with_and_without_its_preamble(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(bytes(128) + b"DICM" + ELEMENTS)
    (tmp_path / f"bare_{name}").write_bytes(ELEMENTS)
    assert names(tmp_path) == sorted([name, f"bare_{name}"])


def test_look_into_goes_deeper_than_python_calls_itself(tmp_path: Path) -> None:
    folder = tmp_path
    for _ in range(1500):
        folder = folder / "d"
        folder.mkdir()
    (folder / "a.png").write_bytes(b"x")
    try:
        assert look_into(tmp_path).images == (folder / "a.png",)
    finally:  # pytest itself would not get so deep
        (folder / "a.png").unlink()
        while folder != tmp_path:
            folder.rmdir()
            folder = folder.parent


def test_look_into_every_file_is_read_listed_or_hidden(tmp_path: Path) -> None:
    images = ("a.png", "sub/deep/b.jpg", "with blank.bmp", "ümlaut.webp")
    others = {
        "Thumbs.db": ".db",
        "README": "without a suffix",
        "x.Doe-Jane": "of another suffix",
        "sub/a.xlsx": ".xlsx",
    }
    hidden = (".DS_Store", "._a.png", ".trash/b.png", "__MACOSX/a.png", "DICOMDIR", "sub/dicomdir")
    for name in (*images, *others, *hidden):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(b"x")
    assert names(tmp_path) == sorted(images)
    assert left_out(tmp_path) == others
    assert look_into(tmp_path).note() == (
        "4 not read, being no image: 1 .db, 1 .xlsx, 1 of another suffix, 1 without a suffix"
    )
    flat = look_into(tmp_path, deep=False)
    assert [path.name for path in flat.images] == ["a.png", "with blank.bmp", "ümlaut.webp"]
    assert "1 sub-folders" in flat.note()


def test_look_into_links_are_followed_once_and_broken_ones_are_listed(tmp_path: Path) -> None:
    ward, archive = tmp_path / "ward", tmp_path / "archive"
    for folder in (ward / "today", archive / "old"):
        folder.mkdir(parents=True)
        (folder / "image.png").write_bytes(b"x")
    (ward / "archive").symlink_to(archive)
    (ward / "again").symlink_to(ward / "today")  # read under its own name already
    (ward / "today" / "up").symlink_to(ward)
    (archive / "old" / "loop").symlink_to(archive)
    (ward / "image.png").symlink_to(archive / "old" / "image.png")
    (ward / "gone.png").symlink_to(tmp_path / "nowhere.png")
    (ward / "self").symlink_to(ward / "self")
    assert names(ward) == ["archive/old/image.png", "image.png", "today/image.png"]
    assert left_out(ward) == {"gone.png": "links to nothing", "self": "links to nothing"}


def test_look_into_what_is_no_file_is_listed_and_not_opened(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)  # the whole path may be longer than a socket's name can be
    os.mkfifo(tmp_path / "pipe.png")
    with socket.socket(socket.AF_UNIX) as door:
        door.bind("s.png")
        assert left_out(tmp_path) == {name: "pipes, sockets or devices" for name in ("pipe.png", "s.png")}


def test_look_into_a_folder_that_cannot_be_opened_is_listed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "closed").mkdir()
    (tmp_path / "a.png").write_bytes(png(draw_image(0)))
    iterdir = Path.iterdir

    def refuse(path: Path) -> Iterator[Path]:
        if path.name == "closed":
            raise PermissionError(13, "Permission denied")
        return iterdir(path)

    monkeypatch.setattr(Path, "iterdir", refuse)  # root, as which tests may run, may open every folder
    assert names(tmp_path) == ["a.png"]
    assert left_out(tmp_path) == {"closed": "folders that cannot be opened"}
    with pytest.raises(DataError, match="closed: cannot be opened: Permission denied"):
        look_into(tmp_path / "closed")
    with pytest.raises(DataError, match="nowhere is no folder; give a folder of images"):
        look_into(tmp_path / "nowhere")
