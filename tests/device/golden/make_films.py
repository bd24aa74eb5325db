"""Make the golden films and the fingerprints of what they become; needs the `dicom` extra.

    python -m tests.device.golden.make_films

Writes film8.png, film16.png, film.jpg, film12.dcm and expected.json into films/ beside this file. The picture comes
from cxr_compress.device.golden; the DICOM is its negative in 12 of 16 bits, MONOCHROME1, with rescale and window.
"""

from __future__ import annotations

import json

import numpy as np

from cxr_compress.device.golden import GOLDEN_SIZE, fingerprint_array, golden_film
from cxr_compress.device.preprocess import PreprocessSpec, load_uint8, normalize
from cxr_compress.device.spec import PRESETS
from cxr_compress.files import write_bytes, write_text
from tests.device.dicoms import make_dicom
from tests.device.golden import FILMS
from tests.device.images import jpeg, png


def write_films() -> None:
    """The four files."""
    write_bytes(FILMS / "film8.png", png(golden_film(8)))
    write_bytes(FILMS / "film16.png", png(golden_film(16)))
    write_bytes(FILMS / "film.jpg", jpeg(golden_film(8), 100))
    negative = (4095 - golden_film(12)).astype(np.uint16)
    window = {"WindowCenter": [4000, 100], "WindowWidth": [7000, 50]}
    data = make_dicom(negative, "MONOCHROME1", 12, RescaleSlope=2, RescaleIntercept=-100, **window)
    write_bytes(FILMS / "film12.dcm", data)


def fingerprints() -> dict[str, dict[str, str]]:
    """File -> "uint8" and each preset -> fingerprint of what the file becomes."""
    found = {}
    for path in sorted(FILMS.glob("film*")):
        spec = PreprocessSpec(GOLDEN_SIZE, GOLDEN_SIZE)
        pixels = load_uint8(path, spec)
        tensors = {name: normalize(pixels, PreprocessSpec.preset(name, GOLDEN_SIZE, GOLDEN_SIZE)) for name in PRESETS}
        found[path.name] = {name: fingerprint_array(values) for name, values in {"uint8": pixels, **tensors}.items()}
    return found


if __name__ == "__main__":
    write_films()
    write_text(FILMS / "expected.json", json.dumps(fingerprints(), indent=1) + "\n")
