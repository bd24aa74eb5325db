"""The one way in for images: a path, bytes, a file object, a Pillow image or an array become the same pixels."""

from __future__ import annotations

import os
import re
import stat
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from cxr_compress.device.containers import upright
from cxr_compress.device.decode import is_image_file, read_bytes, read_image, without_alpha
from cxr_compress.device.dicom import FIRST_VIEW, DicomView, Picture
from cxr_compress.errors import DataError

# Modes of Pillow by what becomes of them. A palette and two colors are resolved by Pillow itself.
_PIL_AS_THEY_ARE = ("L", "LA", "RGB", "RGBA")
_PIL_16_BITS = {"I;16": "<u2", "I;16L": "<u2", "I;16B": ">u2", "I;16N": "=u2"}
_PIL_CONVERTED = {"1": "L", "P": "RGBA", "PA": "RGBA", "RGBX": "RGB"}
_PIL_32_BITS = "I"
_ORIENTATION = 274
_MOST = 2**16 - 1
_RGB = 3


def read_source(source: Any, view: DicomView = FIRST_VIEW) -> Picture:
    """Decode what a caller has of an image.

    Args:
        source: a path; the content of a file as bytes; a file object opened in binary mode, which is read from where it
            stands; a Pillow image of a mode that holds gray or RGB, turned as its EXIF says; or pixels as an array,
            uint8 or uint16, (H, W), (H, W, 1) or (H, W, 3). Colors are RGB: what `cv2.imread` gives is BGR, so give
            the path instead, or `image[..., ::-1]`.
        view: which frame and window of a DICOM file.

    Returns:
        uint8 or uint16, (H, W) or (H, W, 3) RGB.

    Raises:
        DataError: nothing of these, or what `read_image` refuses; the message names a path and nothing else.
    """
    if isinstance(source, str | os.PathLike):
        return read_image(os.fsdecode(source), view)
    if isinstance(source, bytes | bytearray | memoryview):
        return _read_content(bytes(source), view)
    if hasattr(source, "getbands") and hasattr(source, "tobytes"):
        return _read_pil(source)
    if hasattr(source, "read"):
        return _read_content(_content_of(source), view)
    if isinstance(source, np.ndarray) or hasattr(source, "__array__"):
        return Picture(checked_pixels(np.asarray(source)))
    raise DataError(
        "expected an image as a path, bytes, a binary file object, a Pillow image or an array of pixels, got "
        f"{type(source).__name__}"
    )


def checked_pixels(image: np.ndarray) -> np.ndarray:
    """Give an array of pixels as (H, W) or (H, W, 3), or say what is wrong with it.

    Raises:
        DataError: another dtype or shape, or no pixels.
    """
    image = np.asarray(image)
    if image.dtype.kind == "u":  # medical formats store ">u2", which is uint16 in the other order of bytes
        image = image.astype(image.dtype.newbyteorder("="), copy=False)
    if image.dtype not in (np.uint8, np.uint16):
        raise DataError(f"expected pixels as uint8 or uint16, got {image.dtype}{_about(image)}")
    if image.ndim == _RGB and image.shape[2] == 1:
        image = image[..., 0]
    if image.ndim != 2 and not (image.ndim == _RGB and image.shape[2] == _RGB):  # noqa: PLR2004
        text = f"expected an image of shape (H, W) or (H, W, 3), got {image.shape}"
        if image.ndim == _RGB and image.shape[0] in (1, _RGB):
            text += "; channels come last: image.transpose(1, 2, 0)"
        elif image.ndim == _RGB + 1:
            text += "; give one image at a time"
        elif image.ndim == _RGB and image.shape[2] == _RGB + 1:
            text += "; leave the transparency out: image[..., :3]"
        raise DataError(text)
    if 0 in image.shape:
        raise DataError(f"expected an image with pixels, got shape {image.shape}")
    return image


def _about(image: np.ndarray) -> str:
    """What to do about pixels of another dtype."""
    if image.dtype.kind == "f":
        if not np.isfinite(image).all():
            return " with NaN or infinity; do not normalize beforehand"
        if image.size and image.min() >= 0 and image.max() <= 1:
            return " from 0 to 1; do not normalize beforehand, or give (255 * image).round().astype(np.uint8)"
    if image.dtype.kind == "b":
        return "; do not normalize beforehand: give 0 and 255 as uint8"
    if image.dtype.kind == "O":
        return "; do not normalize beforehand, and give numbers, all rows of one length"
    return "; do not normalize beforehand"


def _read_content(data: bytes, view: DicomView) -> Picture:
    try:
        return read_bytes(data, view)
    except DataError as error:
        raise DataError(f"the image: {error}") from error


def _content_of(file: Any) -> bytes:
    """All that a file object still has to give."""
    try:
        content = file.read()
    except (OSError, ValueError) as error:  # closed, or it was not opened for reading
        raise DataError(f"expected a file object that can be read: {error}") from error
    except Exception as error:  # whatever an object of somebody else raises, as a network response does
        raise DataError(f"expected a file object that can be read, it raised {type(error).__name__}") from error
    if not isinstance(content, bytes | bytearray | memoryview):
        raise DataError(f"expected a file object opened in binary mode ('rb'), it gives {type(content).__name__}")
    if not len(content):
        raise DataError("the image: is empty; a file object is read from where it stands: seek(0) first")
    return bytes(content)


def _read_pil(image: Any) -> Picture:
    """The pixels of a Pillow image, known by what it can do, because Pillow may not be installed."""
    try:
        # A phone's JPEG may hold a second picture (MPO): the first is the one, as in the file.
        many = getattr(image, "is_animated", False) and getattr(image, "format", None) != "MPO"
        frames = int(getattr(image, "n_frames", 1)) if many else 1
        image.load()  # a TIFF is turned, and a truncated file noticed, only now
        exif = image.getexif().get(_ORIENTATION, 1) if hasattr(image, "getexif") else 1
        mode = image.mode
        if mode in _PIL_CONVERTED:
            image = image.convert(_PIL_CONVERTED[mode])
        width, height = image.size
        content = image.tobytes()
    except Exception as error:  # Pillow raises OSError, SyntaxError, ValueError and others on damaged files
        raise DataError(
            f"the image: Pillow cannot read it ({type(error).__name__}); copy or export it again"
        ) from error
    if frames > 1:
        raise DataError(f"the image: holds {frames} images, expected one; give image.copy() of the one that is meant")
    if not width or not height:
        raise DataError(f"expected an image with pixels, got one of {width} x {height}")
    pixels = _pil_pixels(image.mode, content, (height, width))
    picture = without_alpha(pixels)
    turned = exif if isinstance(exif, int) and 1 <= exif <= 8 else 1  # noqa: PLR2004 - as EXIF counts them
    return Picture(upright(picture.pixels, turned), picture.notes)


def _pil_pixels(mode: str, content: bytes, size: tuple[int, int]) -> np.ndarray:
    if mode in _PIL_AS_THEY_ARE:
        return np.frombuffer(content, np.uint8).reshape(*size, len(mode))[..., 0 if mode == "L" else slice(None)]
    if mode in _PIL_16_BITS:
        return np.frombuffer(content, _PIL_16_BITS[mode]).astype(np.uint16).reshape(size)
    if mode == _PIL_32_BITS:  # what Pillow makes of 16-bit PNGs, among others
        wide = np.frombuffer(content, np.int32).reshape(size)
        if wide.min() >= 0 and wide.max() <= _MOST:
            return wide.astype(np.uint16)
        raise DataError(
            f"expected a Pillow image of 8 or 16 bits, got mode I with values from {wide.min()} to {wide.max()}"
        )
    known = ", ".join((*_PIL_AS_THEY_ARE, *_PIL_16_BITS, *_PIL_CONVERTED, _PIL_32_BITS))
    raise DataError(f"expected a Pillow image of mode {known}; got {mode}: give image.convert('L') or convert('RGB')")


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
        kinds = ", ".join(f"{count} {kind}" for kind, count in sorted(counts.items()))
        return f"{len(self.not_read)} not read, being no image: {kinds}" if kinds else ""


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
    for entry in _walk(folder, deep=deep):
        if isinstance(entry, NotRead):
            not_read.append(entry)
        else:
            images.append(entry)
    return FolderContent(tuple(sorted(images)), tuple(sorted(not_read, key=lambda entry: entry.path)))


def _walk(top: Path, *, deep: bool) -> Iterator[Path | NotRead]:
    """Images, and the rest with its reason; a folder that was seen before, or links back to itself, gives nothing."""
    seen: set[tuple[int, int]] = set()
    waiting = [top]  # a list, not recursion: folders may lie in folders more deeply than Python calls itself
    while waiting:
        folder = waiting.pop()
        try:
            about = folder.stat()
            if (about.st_dev, about.st_ino) in seen:
                continue
            seen.add((about.st_dev, about.st_ino))
            entries = sorted(folder.iterdir())
        except OSError as error:
            if folder is top:
                raise DataError(f"{folder}: cannot be opened: {error.strerror or error}") from error
            yield NotRead(folder, "folders that cannot be opened", error.strerror or str(error))
            continue
        folders = []
        for path in entries:
            if path.name.startswith(_HIDDEN):
                continue
            if not os.path.isdir(path):  # noqa: PTH112 - Path.is_dir raises where a folder above it may not be searched
                yield from _look_at(path)
            elif deep:
                folders.append(path)
            else:
                yield NotRead(path, "sub-folders", "is a folder inside of a folder of images")
        # The last is looked into next. Links come after all else of their folder: where a folder is reached both ways,
        # its images have the names that lead there directly.
        waiting += reversed(sorted(folders, key=os.path.islink))


def _look_at(path: Path) -> Iterable[Path | NotRead]:
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
