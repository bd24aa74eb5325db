"""Nothing of a DICOM header reaches a log, a warning, an error or the output, at any verbosity, sound or broken."""

from __future__ import annotations

import io
import logging
import traceback
import warnings
from collections.abc import Iterator
from pathlib import Path

import pytest

pydicom = pytest.importorskip("pydicom")

from cxr_compress.device.dicom import silenced  # noqa: E402
from cxr_compress.errors import DataError  # noqa: E402
from tests.device.dicoms import PATIENT, SECRET, decode_dicom, make_dataset, make_dicom, to_bytes  # noqa: E402
from tests.device.images import draw_image  # noqa: E402

IMAGE = draw_image(1)


def replaced(content: bytes, old: bytes, new: bytes) -> bytes:
    assert content.count(old) == 1
    return content.replace(old, new)


def odd_charset() -> bytes:
    dataset = make_dataset(IMAGE, SpecificCharacterSet="ISO_IR 100")
    return replaced(to_bytes(dataset), b"ISO_IR 100", b"SECRET_100")


def odd_vr() -> bytes:
    """PatientName with a value representation that does not exist."""
    return replaced(make_dicom(IMAGE), b"\x10\x00\x10\x00PN", b"\x10\x00\x10\x00S9")


def odd_number(vr: str) -> bytes:
    """A WindowCenter (DS) or NumberOfFrames (IS) that is no number."""
    dataset = make_dataset(IMAGE, WindowCenter="1234567890123456", WindowWidth="256", NumberOfFrames="1")
    content = to_bytes(dataset)
    if vr == "DS":
        return replaced(content, b"1234567890123456", b"SECRET^PLANTED^^")
    return replaced(content, b"IS\x02\x001 ", b"IS\x02\x00S^")


def odd_bytes_in_name() -> bytes:
    content = make_dicom(IMAGE)
    return replaced(content, PATIENT.encode(), b"SECRET\xff\xfeLANTED")


def odd_syntax() -> bytes:
    dataset = make_dataset(IMAGE)
    dataset.file_meta.TransferSyntaxUID = "1.2.840.10008.1.2.1"
    return replaced(to_bytes(dataset), b"1.2.840.10008.1.2.1\0", b"SECRET.PLANTED.2.1.1")


def with_text(name: str) -> bytes:
    return make_dicom(IMAGE, **{name: f"{SECRET}_X"})


def without_pixels() -> bytes:
    dataset = make_dataset(IMAGE)
    del dataset.PixelData
    return to_bytes(dataset)


FILES = {
    "sound": lambda: make_dicom(IMAGE),
    "charset": odd_charset,
    "value_representation": odd_vr,
    "window": lambda: odd_number("DS"),
    "frames": lambda: odd_number("IS"),
    "name": odd_bytes_in_name,
    "syntax": odd_syntax,
    "photometric": lambda: make_dicom(IMAGE, photometric=f"{SECRET}_X"),
    "function": lambda: make_dicom(IMAGE, WindowCenter=5, WindowWidth=5, VOILUTFunction=f"{SECRET}_X"),
    "shape": lambda: with_text("PresentationLUTShape"),
    "cut": lambda: make_dicom(IMAGE)[:-100],
    "cut_in_name": lambda: make_dicom(IMAGE)[: make_dicom(IMAGE).index(PATIENT.encode()) + 9],
    "no_pixels": without_pixels,
}


@pytest.fixture
def loud() -> Iterator[io.StringIO]:
    """Everything at its loudest into one text: root logger, pydicom's debug mode, warnings shown."""
    said = io.StringIO()
    handler = logging.StreamHandler(said)
    root, logger = logging.getLogger(), logging.getLogger("pydicom")
    level, handlers, propagate, own = root.level, list(logger.handlers), logger.propagate, logger.level
    root.addHandler(handler)
    root.setLevel(logging.DEBUG)
    logger.addHandler(handler)
    pydicom.config.debug(True)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("always")
            warnings.showwarning = lambda message, *_, **__: print(message, file=said)
            yield said
    finally:
        pydicom.config.debug(False)
        root.removeHandler(handler)
        root.setLevel(level)
        logger.handlers, logger.propagate = handlers, propagate
        logger.setLevel(own)


def whole_story(error: BaseException) -> str:
    """The traceback with everything chained to it, what Python would hide included."""
    text = "".join(traceback.format_exception(error))
    chained = [link for link in (error.__cause__, error.__context__) if link is not None]
    return text + "".join(whole_story(link) for link in chained)


@pytest.mark.parametrize("name", FILES)
def test_dicom_says_nothing_of_the_header(name: str, loud: io.StringIO, capfd: pytest.CaptureFixture[str]) -> None:
    content = FILES[name]()
    assert SECRET.encode() in content
    loud.truncate(0)  # what making the file said
    told = ""
    try:
        decode_dicom(content)
    except DataError as error:
        told = whole_story(error)
    out, err = capfd.readouterr()
    assert SECRET not in loud.getvalue() + told + out + err
    assert not [link for link in told.splitlines() if "During handling" in link or "direct cause" in link]


@pytest.mark.parametrize("name", ["charset", "window", "sound"])
def test_dicom_privacy_control_pydicom_alone_tells(name: str, loud: io.StringIO) -> None:
    content = FILES[name]()
    loud.truncate(0)
    told = ""
    try:
        dataset = pydicom.dcmread(io.BytesIO(content))
        _ = dataset.PatientName, dataset.get("WindowCenter")
    except Exception as error:
        told = str(error)
    assert SECRET in loud.getvalue() + told


def test_silenced_leaves_other_threads_and_later_lines_alone(loud: io.StringIO) -> None:
    with silenced():
        logging.getLogger("pydicom").warning("while reading")
        logging.getLogger("another").warning("somebody else")
    logging.getLogger("pydicom").warning("after reading")
    assert "while reading" not in loud.getvalue()
    assert "somebody else" in loud.getvalue()
    assert "after reading" in loud.getvalue()


def test_silenced_lets_warnings_of_others_pass() -> None:
    with pytest.warns(UserWarning, match="of our own"), silenced():
        warnings.warn("of our own", UserWarning, stacklevel=1)


@pytest.mark.parametrize("name", FILES)
def test_predict_of_a_dicom_prints_nothing_of_the_header(
    tmp_path: Path, name: str, loud: io.StringIO, capfd: pytest.CaptureFixture[str]
) -> None:
    from cxr_compress.cli.predict import main
    from tests.device.reference import INT8_MODEL

    (tmp_path / "image.dcm").write_bytes(FILES[name]())
    loud.truncate(0)
    for form in ("json", "csv", "table"):
        assert main([f"--model={INT8_MODEL}", str(tmp_path / "image.dcm"), f"--format={form}", "--debug"]) in (0, 2)
    out, err = capfd.readouterr()
    assert SECRET not in out + err + loud.getvalue()
    assert "Traceback" in err or '"images"' in out  # control: --debug did show where, or there was a result
