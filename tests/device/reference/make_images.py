"""Make the reference images and the fingerprints of what they become; needs the `dicom` extra.

    python -m tests.device.reference.make_images

Writes image8.png, image16.png, image.jpg, image12.dcm and expected.json into images/ beside this file. The picture
comes from drawing.py; the DICOM is its negative in 12 of 16 bits, MONOCHROME1, with rescale and
window.
"""

from __future__ import annotations

import json

import numpy as np

from cxr_compress.device.preprocess import PreprocessSpec, load_uint8, normalize
from cxr_compress.device.spec import PRESETS
from cxr_compress.files import write_bytes, write_text
from tests.device.dicoms import make_dicom
from tests.device.images import jpeg, png
from tests.device.reference import IMAGES
from tests.device.reference.drawing import REFERENCE_SIZE, fingerprint_array, reference_image


def write_images() -> None:
    """The four files."""
    write_bytes(IMAGES / "image8.png", png(reference_image(8)))
    write_bytes(IMAGES / "image16.png", png(reference_image(16)))
    write_bytes(IMAGES / "image.jpg", jpeg(reference_image(8), 100))
    negative = (4095 - reference_image(12)).astype(np.uint16)
    window = {"WindowCenter": [4000, 100], "WindowWidth": [7000, 50]}
    data = make_dicom(negative, "MONOCHROME1", 12, RescaleSlope=2, RescaleIntercept=-100, **window)
    write_bytes(IMAGES / "image12.dcm", data)


def fingerprints() -> dict[str, dict[str, str]]:
    """File -> "uint8" and each preset -> fingerprint of what the file becomes."""
    found = {}
    for path in sorted(IMAGES.glob("image*")):
        spec = PreprocessSpec(REFERENCE_SIZE, REFERENCE_SIZE)
        pixels = load_uint8(path, spec)
        tensors = {
            name: normalize(pixels, PreprocessSpec.preset(name, REFERENCE_SIZE, REFERENCE_SIZE)) for name in PRESETS
        }
        found[path.name] = {name: fingerprint_array(values) for name, values in {"uint8": pixels, **tensors}.items()}
    return found


if __name__ == "__main__":
    write_images()
    write_text(IMAGES / "expected.json", json.dumps(fingerprints(), indent=1) + "\n")
