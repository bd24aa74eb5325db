"""Quantization-aware training of any image classifier, DenseNet included, and its export to int8.

    qat = prepare_qat(model, calibration)         # a trainable copy that rounds as the int8 file will
    fit(qat.model, train, dev, spec, config, ...) # as any other model, distillation included
    file = convert_qat(qat, "int8")               # LiteModel

Importing it needs TensorFlow Model Optimization, and is a CompressionError without.
"""

from cxr_compress.lite.qat.convert import convert_qat
from cxr_compress.lite.qat.fold import FoldedModel, fold_batch_norms
from cxr_compress.lite.qat.prepare import QatModel, prepare_qat

__all__ = ["FoldedModel", "QatModel", "convert_qat", "fold_batch_norms", "prepare_qat"]
