"""Read a model file as others do: with tflite-support's displayer and Task library, and with MediaPipe.

    python read_metadata.py KIND MODEL IMAGES.npy      prints JSON; {"missing": why} where KIND cannot be imported

KIND is displayer, task or mediapipe. IMAGES.npy holds uint8 (n, height, width, 3). Run by test_metadata_readers.py with
the Python that CXR_METADATA_PYTHON names.
"""

import json
import sys

import numpy as np


def displayer(path, images):
    """What the standard's own reader understands."""
    from tensorflow_lite_support.metadata.cc.python import _pywrap_metadata_version
    from tflite_support import metadata

    shown = metadata.MetadataDisplayer.with_model_file(path)
    # Compares the numbers of tensors in metadata and model, and raises where they differ.
    metadata.MetadataPopulator.with_model_file(path).load_metadata_buffer(bytearray(shown.get_metadata_buffer()))
    return {
        "metadata": json.loads(shown.get_metadata_json()),
        "files": shown.get_packed_associated_file_list(),
        "labels": shown.get_associated_file_buffer("labels.txt").decode(),
        "min_version": _pywrap_metadata_version.GetMinimumMetadataParserVersion(bytes(shown.get_metadata_buffer())),
    }


def task(path, images):
    """The scores of the Task library's image classifier."""
    from tflite_support.task import vision

    classifier = vision.ImageClassifier.create_from_file(path)
    found = [classifier.classify(vision.TensorImage.create_from_array(image)) for image in images]
    return [{c.category_name: c.score for c in one.classifications[0].categories} for one in found]


def mediapipe(path, images):
    """The scores of MediaPipe's image classifier."""
    import mediapipe as mp
    from mediapipe.tasks import python
    from mediapipe.tasks.python import vision

    options = vision.ImageClassifierOptions(base_options=python.BaseOptions(model_asset_path=path))
    with vision.ImageClassifier.create_from_options(options) as classifier:
        made = [mp.Image(image_format=mp.ImageFormat.SRGB, data=np.ascontiguousarray(image)) for image in images]
        found = [classifier.classify(image) for image in made]
    return [{c.category_name: c.score for c in one.classifications[0].categories} for one in found]


def main(kind, path, images):
    """Print what one reader says."""
    try:
        said = {"displayer": displayer, "task": task, "mediapipe": mediapipe}[kind](path, np.load(images))
    except ImportError as error:
        said = {"missing": str(error)}
    except (RuntimeError, ValueError, NotImplementedError, FileNotFoundError) as error:
        said = {"refused": str(error)}
    print(json.dumps(said))


if __name__ == "__main__":
    main(*sys.argv[1:])
