from __future__ import annotations

import io
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

pydicom = pytest.importorskip("pydicom")

from pydicom.uid import ExplicitVRBigEndian, ImplicitVRLittleEndian  # noqa: E402

from cxr_compress.device.decode import decode_image  # noqa: E402
from cxr_compress.device.dicom import DicomView  # noqa: E402
from cxr_compress.device.preprocess import PreprocessSpec, load_uint8, preprocess  # noqa: E402
from cxr_compress.errors import DataError  # noqa: E402
from tests.device.dicoms import (  # noqa: E402
    JPEG_2000,
    JPEG_LOSSLESS,
    JPEG_LS,
    RLE,
    compress,
    decode_dicom,
    lut_item,
    make_dataset,
    make_dicom,
    to_bytes,
)
from tests.device.images import (  # noqa: E402
    color_photo,
    draw_image,
    png,
)

IMAGE = draw_image(1)
IMAGE12 = draw_image(2).astype(np.uint16) * 16 + draw_image(3) % 16  # 0 to 4095
FULL12 = {"WindowCenter": 2048, "WindowWidth": 4096}


def real_file(name: str) -> bytes:
    from pydicom.data import get_testdata_file

    path = get_testdata_file(name, download=False)
    if path is None:
        pytest.skip(f"{name} not found: pip install pydicom-data")
    return Path(str(path)).read_bytes()


def window12(values: np.ndarray, center: float, width: float) -> np.ndarray:
    """The LINEAR window of PS3.3 C.11.2.1.2.1 to 8 bits, written as the standard does, pixel by pixel."""
    below, above = center - 0.5 - (width - 1) / 2, center - 0.5 + (width - 1) / 2
    between = ((values - (center - 0.5)) / (width - 1) + 0.5) * 255
    return np.floor(np.where(values <= below, 0, np.where(values > above, 255, between)) + 0.5)


# --- real files -------------------------------------------------------------------------------------------------------


def test_dicom_real_image_uncompressed_and_jpeg_2000_agree() -> None:
    plain, packed = decode_dicom(real_file("RG1_UNCI.dcm")), decode_dicom(real_file("RG1_J2KI.dcm"))
    assert (plain.shape, plain.dtype) == ((1955, 1841), np.uint8)
    # J2KI is irreversible JPEG 2000; over 15 bits its loss stays below half of one of 256 levels but at their edges.
    assert np.abs(plain.astype(int) - packed).max() <= 1
    rows, columns = plain.shape
    middle = plain[rows // 3 : rows // 2, columns * 45 // 100 : columns // 2].mean()
    lung = plain[rows // 3 : rows // 2, columns // 4 : columns // 3].mean()
    assert middle > lung + 30  # MONOCHROME1, turned: bones are bright


def test_dicom_real_image_equals_pydicoms_own_steps() -> None:
    from pydicom.pixels import apply_modality_lut, apply_voi_lut, pixel_array

    dataset = pydicom.dcmread(io.BytesIO(real_file("RG1_UNCI.dcm")))
    theirs = apply_voi_lut(apply_modality_lut(pixel_array(dataset), dataset), dataset)
    expected = 255 - theirs.astype(np.float64) * 255 / (2**dataset.BitsStored - 1)
    # Rounded to the nearest level, and not more than rounded.
    assert np.abs(decode_dicom(to_bytes(dataset)) - expected).max() <= 0.5 + 1e-9


def test_dicom_real_siim_image_is_its_jpeg(cxr_data: Path) -> None:
    image = decode_image(cxr_data / "dicom" / "siim_cr_jpeg_baseline.dcm")
    assert (image.shape, image.dtype) == ((1024, 1024), np.uint8)
    assert image.std() > 30
    assert load_uint8(cxr_data / "dicom" / "siim_cr_jpeg_baseline.dcm", PreprocessSpec(64, 64)).shape == (64, 64)


# --- the chain --------------------------------------------------------------------------------------------------------


def test_dicom_8_bit_without_window_is_as_stored() -> None:
    np.testing.assert_array_equal(decode_dicom(make_dicom(IMAGE)), IMAGE)


def test_dicom_12_in_16_bits_uses_bits_stored() -> None:
    np.testing.assert_array_equal(decode_dicom(make_dicom(IMAGE12, bits=12)), np.rint(IMAGE12 * 255.0 / 4095))
    as_16 = decode_dicom(make_dicom(IMAGE12), DicomView(bit_depth=16))
    assert as_16.max() < 17  # control: the same pixels as 16 bits are nearly black


def test_dicom_bits_above_bits_stored_are_not_looked_at() -> None:
    overlay = IMAGE12 | 0x8000 * (IMAGE12 % 2)  # overlays of old files lived there
    expected = decode_dicom(make_dicom(IMAGE12, bits=12))
    np.testing.assert_array_equal(decode_dicom(make_dicom(overlay.astype(np.uint16), bits=12)), expected)


def test_dicom_signed_pixels_are_signed() -> None:
    signed = (IMAGE12.astype(np.int16) - 2048).astype(np.int16)
    data = make_dicom(signed, bits=12, WindowCenter=0, WindowWidth=4096)
    np.testing.assert_array_equal(decode_dicom(data), window12(signed, 0, 4096))
    masked = make_dicom((signed & 0x0FFF).astype(np.int16), bits=12, WindowCenter=0, WindowWidth=4096)
    np.testing.assert_array_equal(decode_dicom(masked), decode_dicom(data))  # the sign bit is bit 11


@pytest.mark.parametrize("windowed", [False, True])
def test_dicom_monochrome1_and_2_twins_give_equal_tensors(tmp_path: Path, windowed: bool) -> None:
    # The negative's window: its center on the other side, one further because LINEAR looks half a value to the left.
    here, there = ({"WindowCenter": c, "WindowWidth": 900} if windowed else {} for c in (1500, 4095 - 1500 + 1))
    twin = (4095 - IMAGE12).astype(np.uint16)
    (tmp_path / "two.dcm").write_bytes(make_dicom(IMAGE12, "MONOCHROME2", 12, **here))
    (tmp_path / "one.dcm").write_bytes(make_dicom(twin, "MONOCHROME1", 12, **there))
    (tmp_path / "control.dcm").write_bytes(make_dicom(twin, "MONOCHROME2", 12, **there))
    spec = PreprocessSpec(20, 16)
    two, one, control = (preprocess(tmp_path / f"{name}.dcm", spec) for name in ("two", "one", "control"))
    np.testing.assert_array_equal(one, two)
    assert np.abs(control - two).max() > 0.5  # control: without the inversion they differ


def test_dicom_monochrome1_is_inverted_after_the_window() -> None:
    # Inverting first would put a window that is off the center on other values.
    data = make_dicom(IMAGE12, "MONOCHROME1", 12, WindowCenter=1000, WindowWidth=500)
    np.testing.assert_allclose(decode_dicom(data), 255 - window12(IMAGE12, 1000, 500), atol=1)
    before = window12(4095 - IMAGE12, 1000, 500)
    assert np.abs(decode_dicom(data) - before).max() > 100


@pytest.mark.parametrize("photometric", ["MONOCHROME1", "MONOCHROME2"])
def test_dicom_presentation_lut_shape_inverse_inverts_once(photometric: str) -> None:
    data = make_dicom(IMAGE, photometric, PresentationLUTShape="INVERSE")
    np.testing.assert_array_equal(decode_dicom(data), 255 - IMAGE)
    identity = make_dicom(IMAGE, "MONOCHROME2", PresentationLUTShape="IDENTITY")
    np.testing.assert_array_equal(decode_dicom(identity), IMAGE)


def test_dicom_of_several_windows_takes_the_first_or_the_chosen_one() -> None:
    data = make_dicom(IMAGE12, bits=12, WindowCenter=[1000, 3000], WindowWidth=[1500, 2000])
    np.testing.assert_array_equal(decode_dicom(data), window12(IMAGE12, 1000, 1500))
    np.testing.assert_array_equal(decode_dicom(data, DicomView(window=2)), window12(IMAGE12, 3000, 2000))
    np.testing.assert_array_equal(decode_dicom(data, DicomView(window=(500, 600))), window12(IMAGE12, 500, 600))
    with pytest.raises(DataError, match=r"offers 2 windows, --window=3 is none of them; give CENTER,WIDTH"):
        decode_dicom(data, DicomView(window=3))


def test_dicom_rescale_comes_before_the_window() -> None:
    data = make_dicom(IMAGE12, bits=12, RescaleSlope=2, RescaleIntercept=-100, WindowCenter=3000, WindowWidth=2000)
    np.testing.assert_array_equal(decode_dicom(data), window12(IMAGE12 * 2.0 - 100, 3000, 2000))


def test_dicom_voi_lut_comes_before_windows_and_can_be_left() -> None:
    lut = lut_item(0, 8, [255 - value for value in range(256)])
    data = make_dicom(IMAGE, VOILUTSequence=[lut], WindowCenter=128, WindowWidth=256)
    np.testing.assert_array_equal(decode_dicom(data), 255 - IMAGE)
    np.testing.assert_array_equal(decode_dicom(data, DicomView(window=2)), IMAGE)


def test_dicom_modality_lut_is_applied() -> None:
    lut = lut_item(0, 8, [value // 2 for value in range(256)])
    np.testing.assert_array_equal(decode_dicom(make_dicom(IMAGE, ModalityLUTSequence=[lut])), IMAGE // 2)


def test_dicom_voi_lut_of_signed_values_may_start_below_zero() -> None:
    lut = lut_item(65536 - 128, 8, list(range(256)))  # as an unsigned short: what writers make of -128
    signed = (IMAGE.astype(np.int16) - 128).astype(np.int8)
    np.testing.assert_array_equal(decode_dicom(make_dicom(signed, VOILUTSequence=[lut])), IMAGE)


# --- transfer syntaxes ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("syntax", "module"),
    [(RLE, "rle"), (JPEG_2000, "openjpeg"), (JPEG_LS, "gdcm"), (JPEG_LOSSLESS, "gdcm")],
    ids=["rle", "jpeg_2000", "jpeg_ls", "jpeg_lossless"],
)
@pytest.mark.parametrize("signed", [False, True], ids=["unsigned", "signed"])
def test_dicom_lossless_syntaxes_give_the_uncompressed_picture(
    tmp_path: Path, syntax: Any, module: str, signed: bool
) -> None:
    pytest.importorskip(module)
    pixels = (IMAGE12.astype(np.int16) - 2048).astype(np.int16) if signed else IMAGE12
    if signed and syntax == JPEG_LOSSLESS:
        pixels = np.abs(pixels)  # gdcm writes no negative ones in it
    plain = make_dicom(pixels, "MONOCHROME1", 12, WindowCenter=0 if signed else 1500, WindowWidth=2000)
    packed = compress(plain, syntax, tmp_path)
    assert pydicom.dcmread(io.BytesIO(packed)).file_meta.TransferSyntaxUID == syntax
    np.testing.assert_array_equal(decode_dicom(packed), decode_dicom(plain))


@pytest.mark.parametrize("syntax", [RLE, JPEG_2000, JPEG_LS, JPEG_LOSSLESS], ids=str)
def test_dicom_compressed_and_cut_anywhere_is_refused(tmp_path: Path, syntax: Any) -> None:
    pytest.importorskip("gdcm")
    pytest.importorskip("openjpeg")
    packed = compress(make_dicom(IMAGE12, bits=12), syntax, tmp_path)
    for length in range(132, len(packed) - 8, 97):  # the last 8 bytes only say that nothing follows
        with pytest.raises(DataError, match=r"cut short|damaged"):
            decode_dicom(packed[:length])


def test_dicom_jpeg_that_ends_early_inside_a_whole_file_is_refused(tmp_path: Path) -> None:
    pytest.importorskip("gdcm")
    dataset = pydicom.dcmread(io.BytesIO(compress(make_dicom(IMAGE), JPEG_LS, tmp_path)))
    (frame,) = pydicom.encaps.generate_frames(dataset.PixelData, number_of_frames=1)
    dataset.PixelData = pydicom.encaps.encapsulate([frame[: len(frame) // 2]])
    with pytest.raises(DataError, match="its compressed pixels are incomplete"):
        decode_dicom(to_bytes(dataset))


def test_dicom_big_endian_and_implicit_files_are_read() -> None:
    dataset = make_dataset(IMAGE12, bits=12)
    dataset.PixelData = IMAGE12.astype(">u2").tobytes()
    dataset.file_meta.TransferSyntaxUID = ExplicitVRBigEndian
    dataset["PixelData"].VR = "OW"
    expected = decode_dicom(make_dicom(IMAGE12, bits=12))
    buffer = io.BytesIO()
    pydicom.dcmwrite(buffer, dataset, implicit_vr=False, little_endian=False)
    np.testing.assert_array_equal(decode_dicom(buffer.getvalue()), expected)
    implicit = make_dataset(IMAGE12, bits=12)
    implicit.file_meta.TransferSyntaxUID = ImplicitVRLittleEndian
    np.testing.assert_array_equal(decode_dicom(to_bytes(implicit)), expected)


BLOCK_DECODERS = """
import sys
class Blocker:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in {blocked}:
            raise ImportError("blocked: " + name)
sys.meta_path.insert(0, Blocker())
from cxr_compress.device.decode import decode_image
decode_image(sys.argv[1])
"""


@pytest.mark.parametrize(
    ("syntax", "text"),
    [
        (JPEG_LOSSLESS, "JPEG Lossless, Non-Hierarchical, First-Order Prediction (Process 14 [Selection Value 1]) ("),
        (JPEG_LS, "JPEG-LS Lossless Image Compression (1.2.840.10008.1.2.4.80)"),
        (JPEG_2000, "JPEG 2000 Image Compression (Lossless Only) (1.2.840.10008.1.2.4.90)"),
    ],
    ids=["jpeg_lossless", "jpeg_ls", "jpeg_2000"],
)
def test_dicom_missing_decoder_names_the_syntax_and_the_pip_line(tmp_path: Path, syntax: Any, text: str) -> None:
    pytest.importorskip("gdcm")
    pytest.importorskip("openjpeg")
    (tmp_path / "image").write_bytes(compress(make_dicom(IMAGE), syntax, tmp_path))
    blocked = ("gdcm", "_gdcm", "openjpeg", "pylibjpeg", "PIL", "jpeg_ls", "libjpeg", "rle")
    command = [sys.executable, "-c", BLOCK_DECODERS.format(blocked=blocked), str(tmp_path / "image")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    last = done.stderr.splitlines()[-1]
    assert f"is compressed as {text}" in last
    assert "whose decoder is missing: pip install 'cxr-compress[dicom]', or pip install py" in last
    assert ("pylibjpeg-openjpeg" if syntax == JPEG_2000 else "python-gdcm") in last
    whole = [sys.executable, "-c", BLOCK_DECODERS.format(blocked=("nothing",)), str(tmp_path / "image")]
    assert subprocess.run(whole, capture_output=True, check=False).returncode == 0  # control: nothing blocked


def test_dicom_without_pydicom_names_the_pip_line_and_png_still_works(tmp_path: Path) -> None:
    (tmp_path / "image").write_bytes(make_dicom(IMAGE))
    (tmp_path / "image.png").write_bytes(png(IMAGE))
    code = BLOCK_DECODERS.format(blocked=("pydicom",))
    command = [sys.executable, "-c", code]
    done = subprocess.run([*command, str(tmp_path / "image")], capture_output=True, text=True, check=False)
    assert "image: is a DICOM file, which needs pydicom: pip install 'cxr-compress[dicom]'" in done.stderr
    assert subprocess.run([*command, str(tmp_path / "image.png")], check=False).returncode == 0


# --- frames, color ---------------------------------------------------------------------------------------------------


def test_dicom_of_several_frames_is_refused_or_one_is_chosen() -> None:
    frames = np.stack([IMAGE, draw_image(2), draw_image(3)])
    dataset = make_dataset(IMAGE, NumberOfFrames=3)
    dataset.PixelData = frames.tobytes()
    data = to_bytes(dataset)
    with pytest.raises(DataError, match="holds 3 frames, expected one image; choose one with --frame=1 to 3"):
        decode_dicom(data)
    np.testing.assert_array_equal(decode_dicom(data, DicomView(frame=3)), frames[2])
    with pytest.raises(DataError, match="holds 3 frames, frame 4 is none of them"):
        decode_dicom(data, DicomView(frame=4))
    np.testing.assert_array_equal(decode_dicom(make_dicom(IMAGE), DicomView(frame=1)), IMAGE)


def test_dicom_color_goes_to_the_gray_check(tmp_path: Path) -> None:
    photo = color_photo()
    (tmp_path / "photo.dcm").write_bytes(make_dicom(photo, "RGB"))
    np.testing.assert_array_equal(decode_image(tmp_path / "photo.dcm"), photo)
    with pytest.raises(DataError, match="expected a gray image, got color"):
        load_uint8(tmp_path / "photo.dcm", PreprocessSpec(16, 16))
    gray = np.repeat(IMAGE[..., np.newaxis], 3, axis=2)
    (tmp_path / "gray.dcm").write_bytes(make_dicom(gray, "RGB"))
    spec = PreprocessSpec(*IMAGE.shape)
    np.testing.assert_array_equal(load_uint8(tmp_path / "gray.dcm", spec), IMAGE)


def test_dicom_ybr_becomes_rgb() -> None:
    ybr = np.full((4, 4, 3), 128, np.uint8)
    ybr[..., 0] = 77
    np.testing.assert_array_equal(decode_dicom(make_dicom(ybr, "YBR_FULL")), np.full((4, 4, 3), 77))


def test_dicom_palette_is_resolved() -> None:
    pixels = np.array([[0, 1], [2, 1]], np.uint8)
    colors = {"Red": [0, 65535, 0], "Green": [0, 0, 65535], "Blue": [0, 0, 0]}
    dataset = make_dataset(pixels, "PALETTE COLOR")
    for name, values in colors.items():
        dataset.add_new(f"{name}PaletteColorLookupTableDescriptor", "US", [3, 0, 16])
        dataset.add_new(f"{name}PaletteColorLookupTableData", "OW", np.array(values, "<u2").tobytes())
    decoded = decode_dicom(to_bytes(dataset))
    assert decoded.tolist() == [[[0, 0, 0], [255, 0, 0]], [[0, 255, 0], [255, 0, 0]]]


# --- what is refused --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "text"),
    [
        (lambda ds: ds.__delattr__("PixelData"), "is cut short: its pixels are missing or incomplete"),
        (lambda ds: [ds.__delattr__(n) for n in ("PixelData", "Rows")], "holds no image: it is a report"),
        (lambda ds: setattr(ds, "PixelData", ds.PixelData[:-2]), "is cut short: holds 1918 bytes of pixels, 1 x 48"),
        (lambda ds: setattr(ds, "PixelData", ds.PixelData * 2), "holds 3840 bytes of pixels, 1 x 48 x 40 of them"),
        (lambda ds: setattr(ds, "Columns", 41), "should take 1968"),
        (lambda ds: setattr(ds, "Rows", 0), "no usable Rows"),
        (lambda ds: ds.__delattr__("BitsAllocated"), "no usable BitsAllocated"),
        (lambda ds: setattr(ds, "BitsStored", 9), "stores 9 of 8 bits"),
        (lambda ds: setattr(ds, "HighBit", 3), "up to bit 3"),
        (lambda ds: setattr(ds, "PhotometricInterpretation", "SECRET"), "PhotometricInterpretation that is not read"),
        (lambda ds: setattr(ds, "SamplesPerPixel", 3), "MONOCHROME2 with 3 samples a pixel"),
        (lambda ds: [setattr(ds, n, 65535) for n in ("Rows", "Columns")], "claims 65535 x 65535 pixels"),
        (lambda ds: [setattr(ds, "RescaleSlope", 0), setattr(ds, "RescaleIntercept", 0)], "RescaleSlope of 0"),
        (lambda ds: [setattr(ds, "WindowCenter", 5), setattr(ds, "WindowWidth", 0)], "that no image can be seen"),
        (lambda ds: setattr(ds, "WindowCenter", 5), "has 1 WindowCenter but 0 WindowWidth"),
        (lambda ds: setattr(ds.file_meta, "TransferSyntaxUID", "1.2.3.4"), r"as transfer syntax 1\.2\.3\.4, which"),
        (lambda ds: ds.add_new("FloatPixelData", "OF", bytes(8)), "holds floating-point pixels"),
    ],
)  # fmt: skip
def test_dicom_unusable_is_refused_in_one_line(tmp_path: Path, change: Any, text: str) -> None:
    dataset = make_dataset(IMAGE)
    change(dataset)
    (tmp_path / "image.dcm").write_bytes(to_bytes(dataset))
    with pytest.raises(DataError, match=text) as caught:
        decode_image(tmp_path / "image.dcm")
    assert str(caught.value).startswith(f"{tmp_path / 'image.dcm'}: ")
    assert "\n" not in str(caught.value)
    assert "SECRET" not in str(caught.value)


def test_dicom_plain_cut_at_any_length_is_refused() -> None:
    data = make_dicom(IMAGE12, bits=12)
    for length in [*range(1, 400, 7), *range(400, len(data), 61), len(data) - 1]:
        with pytest.raises(DataError, match=r"cut short|damaged|holds no image"):
            decode_dicom(data[:length])


@settings(max_examples=150)
@given(data=st.data())
def test_dicom_with_a_flipped_byte_is_a_picture_or_a_data_error(data: st.DataObject) -> None:
    content = bytearray(make_dicom(IMAGE12, "MONOCHROME1", 12, RescaleSlope=1, RescaleIntercept=0, **FULL12))
    header = len(content) - IMAGE12.nbytes
    content[data.draw(st.integers(128, header - 1))] ^= data.draw(st.integers(1, 255))
    outcome = attempt(bytes(content))
    assert "SECRET" not in outcome if isinstance(outcome, str) else outcome.dtype == np.uint8


def attempt(content: bytes) -> np.ndarray | str:
    """The picture, or the text of the DataError; anything else goes through."""
    try:
        return decode_dicom(content)
    except DataError as error:
        return str(error)
