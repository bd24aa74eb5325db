"""Make the reference model with a class activation map and its expected map; needs the `train` extra.

    python -m tests.device.reference.make_cam

Writes tiny_cam_int8.tflite, the network of make_reference.py with the map as its second output, and cam.json: the
biases of its two findings, and what the map of one drawn image sums to.
"""

from __future__ import annotations

import json

from cxr_compress.device.classifier import Classifier
from cxr_compress.device.modelfile import ModelInfo, pack_model
from cxr_compress.files import write_bytes, write_text
from tests.device.images import draw_image
from tests.device.reference import CAM_EXPECTED, CAM_MODEL
from tests.device.reference.make_reference import LABELS, SPEC, build_network, calibration_batch


def main() -> None:
    """Write both files."""
    from cxr_compress.lite import convert

    network = build_network()
    made = convert(network, "int8", calibration=[calibration_batch()], head="logits+cam")
    info = ModelInfo(
        model_name="reference_cam_int8",
        labels=LABELS,
        preprocess=SPEC,
        logit_slope=(1.0, 1.0),
        logit_offset=(0.0, 0.0),
        thresholds=(0.5, 0.5),
        threshold_source="0.5 by default",
        quant_type="int8",
        training_data="drawn images",
        synthetic=True,
    )
    write_bytes(CAM_MODEL, pack_model(made.content, info))
    found = Classifier(CAM_MODEL).predict(draw_image(0))
    maps = {label: [[round(float(v), 6) for v in row] for row in found.heatmap(label)] for label in LABELS}
    bias = [float(value) for value in network.layers[-1].get_weights()[1]]
    write_text(CAM_EXPECTED, json.dumps({"bias": bias, "image": 0, "maps": maps}, indent=1) + "\n")


if __name__ == "__main__":
    main()
