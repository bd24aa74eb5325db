"""Scoring what ships: the device's own classifier on a labeled set, and the degradation between two files."""

from cxr_compress.data.dataset import Match, match_findings
from cxr_compress.evaluate.agreement import Agreement, check_agreement, measure_agreement
from cxr_compress.evaluate.calibrate import (
    NO_THRESHOLDS,
    Calibration,
    choose_calibration,
    choose_class_calibration,
    fit_info,
    fittable,
    undo_class_weights,
)
from cxr_compress.evaluate.degradation import Degradation, Gate, check_gate, compare, measure_degradation
from cxr_compress.evaluate.finding import ClassScore, FindingScore
from cxr_compress.evaluate.groups import GROUPINGS, Group, GroupFinding, Grouping, age_bands, groups_of, score_groups
from cxr_compress.evaluate.score import (
    BATCH,
    Answers,
    Evaluation,
    ScorableModel,
    answer_file,
    file_logits,
    from_classifier,
    run_model,
    score_file,
    score_logits,
    score_model,
)
from cxr_compress.evaluate.view import (
    FLAT_COLUMNS,
    PREDICTIONS_START,
    flat_columns,
    flat_rows,
    predictions_csv,
    render_evaluation,
)

__all__ = [
    "BATCH",
    "FLAT_COLUMNS",
    "GROUPINGS",
    "NO_THRESHOLDS",
    "PREDICTIONS_START",
    "Agreement",
    "Answers",
    "Calibration",
    "ClassScore",
    "Degradation",
    "Evaluation",
    "FindingScore",
    "Gate",
    "Group",
    "GroupFinding",
    "Grouping",
    "Match",
    "ScorableModel",
    "age_bands",
    "answer_file",
    "check_agreement",
    "check_gate",
    "choose_calibration",
    "choose_class_calibration",
    "compare",
    "file_logits",
    "fit_info",
    "fittable",
    "flat_columns",
    "flat_rows",
    "from_classifier",
    "groups_of",
    "match_findings",
    "measure_agreement",
    "measure_degradation",
    "predictions_csv",
    "render_evaluation",
    "run_model",
    "score_file",
    "score_groups",
    "score_logits",
    "score_model",
    "undo_class_weights",
]
