"""The reference files of the device tests; the make_*.py beside them make them."""

from pathlib import Path

FOLDER = Path(__file__).resolve().parent
INT8_MODEL = FOLDER / "tiny_int8.tflite"
FLOAT_MODEL = FOLDER / "tiny_float.tflite"
VERSION1_MODEL = FOLDER / "version1.tflite"
NEWER_OP_FLATBUFFER = FOLDER / "newer_op.tflite"
CAM_MODEL = FOLDER / "tiny_cam_int8.tflite"
CAM_EXPECTED = FOLDER / "cam.json"
EXPECTED = FOLDER / "expected.json"
PROBE_PACK = FOLDER / "probe_pack.zip"
IMAGES = FOLDER / "images"
