"""Scoring what ships: the device's own classifier on a labelled set, and the harm between two files."""

from cxr_compress.evaluate.calibrate import Calibration, choose_calibration
from cxr_compress.evaluate.compare import Difference, auroc_difference
from cxr_compress.evaluate.score import Evaluation, FindingScore, score_file, score_logits

__all__ = [
    "Calibration",
    "Difference",
    "Evaluation",
    "FindingScore",
    "auroc_difference",
    "choose_calibration",
    "score_file",
    "score_logits",
]
