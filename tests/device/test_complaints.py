"""Files that are whole by their container and whose pixels are not: refused, never half an image."""

from __future__ import annotations

import os
import struct
import subprocess
import sys
import threading
from pathlib import Path

import cv2
import numpy as np
import pytest

from cxr_compress.device.containers import complaints_refused
from cxr_compress.device.decode import decode_bytes, read_bytes, read_image
from cxr_compress.errors import DataError
from tests.device.images import draw_image, jpeg, tiff

IMAGE = cv2.resize(draw_image(1), (160, 160), interpolation=cv2.INTER_CUBIC)
GOOD = jpeg(IMAGE)
SCAN = GOOD.index(b"\xff\xda") + 2 + int.from_bytes(GOOD[GOOD.index(b"\xff\xda") + 2 :][:2], "big")
MIDDLE = (SCAN + len(GOOD)) // 2
EOI = b"\xff\xd9"
HEIGHT = GOOD.index(b"\xff\xc0") + 5


def _flipped() -> bytes:
    data = bytearray(GOOD)
    for place in range(SCAN + 5, len(GOOD) - 2, (len(GOOD) - SCAN) // 20):
        data[place] = 0x5A
    return bytes(data)


DAMAGED = {
    "half": GOOD[:MIDDLE] + EOI,
    "no scan data": GOOD[:SCAN] + EOI,
    "no scan": GOOD[: GOOD.index(b"\xff\xda")] + EOI,
    "zeros": GOOD[:MIDDLE] + bytes(200) + GOOD[MIDDLE + 200 :],
    "hole": GOOD[:MIDDLE] + GOOD[MIDDLE + 200 :],
    "flips": _flipped(),
    "twice as high": GOOD[:HEIGHT] + struct.pack(">H", 320) + GOOD[HEIGHT + 2 :],
    "half as high": GOOD[:HEIGHT] + struct.pack(">H", 80) + GOOD[HEIGHT + 2 :],
    "marked as arithmetic": GOOD.replace(b"\xff\xc0", b"\xff\xc9", 1),
}


@pytest.mark.parametrize("kind", DAMAGED)
def test_jpeg_damaged_scan_with_an_end_mark_refused(kind: str, capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(DataError, match=r"^is (damaged|cut short): [^\n]*again$"):
        read_bytes(DAMAGED[kind])
    assert capfd.readouterr().err == ""


def test_jpeg_progressive_first_scans_only_refused() -> None:
    whole = jpeg(IMAGE, 95, cv2.IMWRITE_JPEG_PROGRESSIVE, 1)
    starts = [place for place in range(len(whole)) if whole[place : place + 2] == b"\xff\xda"]
    assert len(starts) > 2
    np.testing.assert_array_equal(
        decode_bytes(whole), cv2.imdecode(np.frombuffer(whole, np.uint8), cv2.IMREAD_GRAYSCALE)
    )
    for start in starts[1:]:
        with pytest.raises(DataError, match="scans of the JPEG are missing"):
            read_bytes(whole[:start] + EOI)


@pytest.mark.parametrize("tail", [bytes(500), GOOD, b"text"])
def test_jpeg_bytes_behind_the_end_mark_are_no_damage(tail: bytes) -> None:
    np.testing.assert_array_equal(decode_bytes(GOOD + tail), decode_bytes(GOOD))


def test_jpeg_closed_stderr_damage_still_refused() -> None:
    code = (
        "import sys\n"
        "from cxr_compress.device.decode import read_bytes\n"
        "from cxr_compress.errors import DataError\n"
        "data = sys.stdin.buffer.read()\n"
        "try: read_bytes(data)\n"
        "except DataError as error: print('refused', error)\n"
    )
    command = [sys.executable, "-c", f"import os; os.close(2)\n{code}"]
    done = subprocess.run(command, input=DAMAGED["half"], stdout=subprocess.PIPE, check=False)
    assert done.stdout.startswith(b"refused is damaged")


def test_jpeg_threads_each_get_their_own_verdict() -> None:
    wrong: list[str] = []

    def read(data: bytes, *, sound: bool) -> None:
        for _ in range(30):
            try:
                read_bytes(data)
                wrong.extend([] if sound else ["half read"])
            except DataError:
                wrong.extend(["sound refused"] if sound else [])

    many = [threading.Thread(target=read, args=(GOOD,), kwargs={"sound": True}) for _ in range(2)]
    many += [threading.Thread(target=read, args=(DAMAGED["half"],), kwargs={"sound": False}) for _ in range(2)]
    for thread in many:
        thread.start()
    for thread in many:
        thread.join()
    assert wrong == []


def test_complaints_refused_passes_on_what_is_no_decoders(capfd: pytest.CaptureFixture[str]) -> None:
    with complaints_refused():
        os.write(2, b"a line of somebody else\n[ WARN:0@0.1] global x.cpp:1 f nothing\n")
    assert capfd.readouterr().err == "a line of somebody else\n"


def _packed_tiff(scheme: int, damage: bytes) -> bytes:
    data = bytearray(cv2.imencode(".tif", IMAGE, [cv2.IMWRITE_TIFF_COMPRESSION, scheme])[1].tobytes())
    start = 1000
    data[start : start + len(damage)] = damage
    return bytes(data)


@pytest.mark.parametrize("scheme", [5, 8, 32773], ids=["lzw", "deflate", "packbits"])
def test_tiff_damaged_compressed_pixels_refused(scheme: int, capfd: pytest.CaptureFixture[str]) -> None:
    read_bytes(_packed_tiff(scheme, b""))
    with pytest.raises(DataError, match=r"^is damaged: [^\n]*again"):
        read_bytes(_packed_tiff(scheme, bytes(100)))
    assert capfd.readouterr().err == ""


def test_tiff_damage_is_heard_though_opencv_is_told_to_be_silent() -> None:
    log = cv2 if hasattr(cv2, "setLogLevel") else cv2.utils.logging
    silent, before = 0, log.getLogLevel()
    log.setLogLevel(silent)
    try:
        with pytest.raises(DataError, match="is damaged"):
            read_bytes(_packed_tiff(5, bytes(100)))
        assert log.getLogLevel() == silent
    finally:
        log.setLogLevel(before)


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_tiff_transparent_pixels_refused_opaque_ones_read(dtype: type[np.generic]) -> None:
    top = np.iinfo(dtype).max
    image = IMAGE.astype(dtype) * (top // 255)
    for alpha in (top, top // 2):
        data = tiff(np.dstack([image] * 3 + [np.full_like(image, alpha)]), t338=2)
        if alpha == top:
            np.testing.assert_array_equal(decode_bytes(data)[..., 0], image)
            continue
        with pytest.raises(DataError, match=r"is a TIFF that has transparent pixels \(100.0%\).* without transparency"):
            read_bytes(data)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no named pipes here")
def test_pipe_or_device_or_huge_file_refused_before_it_is_read(tmp_path: Path) -> None:
    pipe, huge = tmp_path / "image.png", tmp_path / "huge.png"
    os.mkfifo(pipe)
    with huge.open("wb") as file:
        file.truncate((1 << 30) + 1)
    for path in (pipe, Path("/dev/zero")):
        with pytest.raises(DataError, match=f"^{path}: is a pipe, socket or device, expected a file"):
            read_image(path)
    with pytest.raises(DataError, match="has 1,073,741,825 bytes, expected an image of at most"):
        read_image(huge)
