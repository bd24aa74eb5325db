"""DICOM files as bytes, for the tests: made with pydicom (and gdcm for what it cannot compress), a patient planted."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
from pydicom.dataset import FileDataset, FileMetaDataset
from pydicom.uid import UID, ComputedRadiographyImageStorage, ExplicitVRLittleEndian

from cxr_compress.device.dicom import FIRST_VIEW, DicomView, read_dicom

SECRET = "SECRET"
PATIENT = f"{SECRET}^PLANTED"
JPEG_LOSSLESS, JPEG_LS, JPEG_2000, RLE = (UID(f"1.2.840.10008.1.2.{tail}") for tail in ("4.70", "4.80", "4.90", "5"))


def decode_dicom(data: bytes, view: DicomView = FIRST_VIEW) -> np.ndarray:
    """The pixels of a DICOM file."""
    return read_dicom(data, view).pixels


def make_dataset(pixels: np.ndarray, photometric: str = "MONOCHROME2", bits: int | None = None, **fields: Any) -> Any:
    """A dataset of (H, W) integers or (H, W, 3) RGB; `fields` are further elements by keyword."""
    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID = ComputedRadiographyImageStorage
    meta.MediaStorageSOPInstanceUID = UID("1.2.826.0.1.3680043.8.498.1")
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    dataset = FileDataset(None, {}, file_meta=meta, preamble=bytes(128))
    dataset.SOPClassUID, dataset.SOPInstanceUID = meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID
    dataset.PatientName, dataset.PatientID, dataset.Modality = PATIENT, f"{SECRET}123", "CR"
    dataset.Rows, dataset.Columns = pixels.shape[:2]
    dataset.SamplesPerPixel = 1 if pixels.ndim == 2 else 3
    if pixels.ndim == 3:
        dataset.PlanarConfiguration = 0
    dataset.PhotometricInterpretation = photometric
    allocated = pixels.dtype.itemsize * 8
    dataset.BitsAllocated, dataset.BitsStored = allocated, bits or allocated
    dataset.HighBit = dataset.BitsStored - 1
    dataset.PixelRepresentation = int(pixels.dtype.kind == "i")
    dataset.PixelData = pixels.astype(pixels.dtype.newbyteorder("<")).tobytes() + bytes(pixels.nbytes % 2)
    dataset["PixelData"].VR = "OB" if allocated == 8 else "OW"
    for name, value in fields.items():
        setattr(dataset, name, value)
    return dataset


def make_dicom(pixels: np.ndarray, photometric: str = "MONOCHROME2", bits: int | None = None, **fields: Any) -> bytes:
    """The same as a file."""
    return to_bytes(make_dataset(pixels, photometric, bits, **fields))


def to_bytes(dataset: Any) -> bytes:
    buffer = io.BytesIO()
    pydicom.dcmwrite(buffer, dataset, enforce_file_format=True)
    return buffer.getvalue()


def lut_item(first: int, bits: int, entries: list[int], representation: str = "US") -> Any:
    """An item of a modality or VOI LUT sequence."""
    item = pydicom.Dataset()
    item.add_new("LUTDescriptor", representation, [len(entries) % 65536, first, bits])
    item.add_new("LUTData", "US", entries)
    return item


def compress(content: bytes, syntax: UID, folder: Path) -> bytes:
    """The same file in another transfer syntax, without loss."""
    if syntax in (RLE, JPEG_2000):
        dataset = pydicom.dcmread(io.BytesIO(content))
        dataset.compress(syntax, generate_instance_uid=False)
        return to_bytes(dataset)
    import gdcm

    source, target = folder / "plain.dcm", folder / "compressed.dcm"
    source.write_bytes(content)
    reader, change, writer = gdcm.ImageReader(), gdcm.ImageChangeTransferSyntax(), gdcm.ImageWriter()
    reader.SetFileName(str(source))
    assert reader.Read()
    kinds = {JPEG_LOSSLESS: gdcm.TransferSyntax.JPEGLosslessProcess14_1, JPEG_LS: gdcm.TransferSyntax.JPEGLSLossless}
    change.SetTransferSyntax(gdcm.TransferSyntax(kinds[syntax]))
    change.SetInput(reader.GetImage())
    assert change.Change()
    writer.SetFileName(str(target))
    writer.SetFile(reader.GetFile())
    writer.SetImage(change.GetOutput())
    assert writer.Write()
    return target.read_bytes()
