"""Chest X-ray sets on disk as labeled, patient-wise splits: readers, checks, decoding, and phantom images."""

from cxr_compress.data.cache import decode_split
from cxr_compress.data.dataset import Dataset
from cxr_compress.data.readers.base import DATASETS, NIH_FINDINGS, Request, load_dataset, register_reader
from cxr_compress.data.readers.chexpert import CHEXPERT_FINDINGS
from cxr_compress.data.readers.kermany import load_kermany
from cxr_compress.data.readers.nih import Box, load_nih, read_boxes
from cxr_compress.data.readers.phantom import PHANTOM_FINDINGS, load_phantom, write_phantom
from cxr_compress.data.splits import Split

__all__ = [
    "CHEXPERT_FINDINGS",
    "DATASETS",
    "NIH_FINDINGS",
    "PHANTOM_FINDINGS",
    "Box",
    "Dataset",
    "Request",
    "Split",
    "decode_split",
    "load_dataset",
    "load_kermany",
    "load_nih",
    "load_phantom",
    "read_boxes",
    "register_reader",
    "write_phantom",
]
