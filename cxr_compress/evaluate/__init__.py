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
    follow_info,
    undo_class_weights,
)
from cxr_compress.evaluate.comparison import INHERITED, OWN, Comparison, Decided, FindingChange, compare_models
from cxr_compress.evaluate.degradation import Degradation, Gate, check_gate, compare, measure_degradation
from cxr_compress.evaluate.finding import ClassScore, FindingScore
from cxr_compress.evaluate.group_changes import GroupChange, GroupingChange, compare_groups, with_intersections
from cxr_compress.evaluate.groups import GROUPINGS, Group, GroupFinding, Grouping, age_bands, groups_of, score_groups
from cxr_compress.evaluate.ladder import MovedImages, Onset, find_moved_images, find_onsets
from cxr_compress.evaluate.limits import Limits, Outcome, check_limits
from cxr_compress.evaluate.predictions import (
    PREDICTIONS_START,
    Predictions,
    predictions_csv,
    read_groups,
    read_predictions,
)
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
from cxr_compress.evaluate.verdict import NOT_INFERIOR, UNDECIDED, WORSE, Judged
from cxr_compress.evaluate.view import (
    FLAT_COLUMNS,
    flat_columns,
    flat_rows,
    render_evaluation,
)

__all__ = [
    "BATCH",
    "FLAT_COLUMNS",
    "GROUPINGS",
    "INHERITED",
    "NOT_INFERIOR",
    "NO_THRESHOLDS",
    "OWN",
    "PREDICTIONS_START",
    "UNDECIDED",
    "WORSE",
    "Agreement",
    "Answers",
    "Calibration",
    "ClassScore",
    "Comparison",
    "Decided",
    "Degradation",
    "Evaluation",
    "FindingChange",
    "FindingScore",
    "Gate",
    "Group",
    "GroupChange",
    "GroupFinding",
    "Grouping",
    "GroupingChange",
    "Judged",
    "Limits",
    "Match",
    "MovedImages",
    "Onset",
    "Outcome",
    "Predictions",
    "ScorableModel",
    "age_bands",
    "answer_file",
    "check_agreement",
    "check_gate",
    "check_limits",
    "choose_calibration",
    "choose_class_calibration",
    "compare",
    "compare_groups",
    "compare_models",
    "file_logits",
    "find_moved_images",
    "find_onsets",
    "fit_info",
    "fittable",
    "flat_columns",
    "flat_rows",
    "follow_info",
    "from_classifier",
    "groups_of",
    "match_findings",
    "measure_agreement",
    "measure_degradation",
    "predictions_csv",
    "read_groups",
    "read_predictions",
    "render_evaluation",
    "run_model",
    "score_file",
    "score_groups",
    "score_logits",
    "score_model",
    "undo_class_weights",
    "with_intersections",
]
