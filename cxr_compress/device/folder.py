"""What a folder holds: the images, and everything that is not read, so that nothing is left out unseen.

A clinic that copies a CD or a memory stick into a folder takes for granted that all of it was looked at. So links to
folders are followed, and what is no image is listed with its reason instead of being passed over.
"""

from __future__ import annotations

import os
import re
import stat
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from cxr_compress.device.decode import is_image_file
from cxr_compress.errors import DataError

# A list of the images of a CD, which are there themselves.
_LIST_OF_IMAGES = "DICOMDIR"
_HIDDEN = (".", "__MACOSX")  # the second holds the first kind alone, in archives that a Mac packed
# What is told of a file's name in notes; anything longer may be part of a person's name ("Doe.Jane").
_PLAIN_SUFFIX = re.compile(r"\.[A-Za-z0-9]{1,5}")


@dataclass(frozen=True)
class NotRead:
    """One thing in a folder that is not read.

    Attributes:
        path: where it is.
        kind: a suffix such as ".txt", or what it is in a word or two; names no person.
        reason: why it is not read.
    """

    path: Path
    kind: str
    reason: str


@dataclass(frozen=True)
class FolderContent:
    """What a folder and its sub-folders hold; both sorted by path.

    Attributes:
        images: what is an image by its suffix, or DICOM by its content.
        not_read: all the rest, hidden files and a DICOMDIR apart.
    """

    images: tuple[Path, ...]
    not_read: tuple[NotRead, ...]

    def note(self) -> str:
        """How many of what are not read, without a file name; "" where all is."""
        counts = Counter(entry.kind for entry in self.not_read)
        told = ", ".join(f"{count} {kind}" for kind, count in sorted(counts.items()))
        return f"{len(self.not_read)} not read, being no image: {told}" if told else ""


def look_into(folder: str | Path, *, deep: bool = True) -> FolderContent:
    """What a folder holds, sub-folders and links to folders included, each folder once.

    An image is told by its suffix (`decode.IMAGE_SUFFIXES`) or, under any other name, by the mark of DICOM. Hidden
    files are left out without a word (macOS leaves "._name.png" beside every image it copies to a memory stick), and so
    is a DICOMDIR, which is a list of images.

    Args:
        folder: where to look.
        deep: also into sub-folders; False lists them as not read.

    Raises:
        DataError: not a folder, or it cannot be opened.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise DataError(f"{folder} is no folder; give a folder of images")
    images: list[Path] = []
    not_read: list[NotRead] = []
    for found in _walk(folder, deep=deep, seen=set(), top=True):
        if isinstance(found, NotRead):
            not_read.append(found)
        else:
            images.append(found)
    return FolderContent(tuple(sorted(images)), tuple(sorted(not_read, key=lambda entry: entry.path)))


def _walk(folder: Path, *, deep: bool, seen: set[tuple[int, int]], top: bool = False) -> Iterator[Path | NotRead]:
    """Images and what is none; a folder that was seen by another way, or that links back to itself, gives nothing."""
    try:
        about = folder.stat()
        if (about.st_dev, about.st_ino) in seen:
            return
        seen.add((about.st_dev, about.st_ino))
        entries = sorted(folder.iterdir())
    except OSError as error:
        if top:
            raise DataError(f"{folder}: cannot be opened: {error.strerror or error}") from error
        yield NotRead(folder, "folders that cannot be opened", error.strerror or str(error))
        return
    # Links last: where a folder is reached both ways, its images have the names that lead there directly.
    paths = sorted((path for path in entries if not path.name.startswith(_HIDDEN)), key=os.path.islink)
    for path in paths:
        if not os.path.isdir(path):  # noqa: PTH112 - Path.is_dir raises where a folder above it may not be searched
            yield from _judge(path)
        elif deep:
            yield from _walk(path, deep=deep, seen=seen)
        else:
            yield NotRead(path, "sub-folders", "is a folder inside of a folder of images")


def _judge(path: Path) -> Iterable[Path | NotRead]:
    """An image, or why not."""
    try:
        mode = path.stat().st_mode
    except OSError as error:
        if path.is_symlink():
            return [NotRead(path, "links to nothing", "is a link to nothing")]
        return [NotRead(path, "files that cannot be looked at", error.strerror or str(error))]
    if not stat.S_ISREG(mode):
        return [NotRead(path, "pipes, sockets or devices", "is no file but a pipe, a socket or a device")]
    if path.name.upper() == _LIST_OF_IMAGES:
        return []
    if is_image_file(path):
        return [path]
    kind = path.suffix.lower()
    plain = kind if _PLAIN_SUFFIX.fullmatch(kind) else "of another suffix" if kind else "without a suffix"
    reason = "is not DICOM, and by its name no image; give it the suffix of what it is if it is one"
    return [NotRead(path, plain, reason)]
