"""How well scores separate sick from healthy images, and how sure that is: numpy only, the same code everywhere.

Labels are 0, 1 or nan for "not known"; an unknown label leaves its image out of that finding alone. Soft labels are for
training and refused here: whoever scores against them has to say first where "yes" begins.

All intervals resample *patients*, not images: two images of one patient are not two independent observations, and an
interval that counts them as such is too narrow.
"""

from cxr_compress.metrics.bootstrap import (
    Interval,
    auroc_samples,
    average_precision_samples,
    bootstrap_auroc,
    bootstrap_mean,
    count_carriers,
    count_comparable_images,
    interval,
    mean_samples,
    sensitivity_at_samples,
    stratified_auroc,
    stratified_auroc_samples,
)
from cxr_compress.metrics.decisions import (
    ENOUGH_IMAGES,
    ReliabilityBin,
    brier_score,
    categorical_cross_entropy,
    check_exclusive,
    choose_threshold,
    class_hits,
    class_log_odds,
    confusion_matrix,
    count_images,
    expected_calibration_error,
    has_enough_data,
    predicted_classes,
    reliability,
    sensitivity_specificity,
    softmax,
)
from cxr_compress.metrics.margin import LEVEL, WANTED_POWER, Loss, holm, power_of
from cxr_compress.metrics.ranking import (
    auroc,
    auroc_per_finding,
    average_precision,
    mean_auroc,
    mid_ranks,
    same_order,
    sensitivity_at,
)

__all__ = [
    "ENOUGH_IMAGES",
    "LEVEL",
    "WANTED_POWER",
    "Interval",
    "Loss",
    "ReliabilityBin",
    "auroc",
    "auroc_per_finding",
    "auroc_samples",
    "average_precision",
    "average_precision_samples",
    "bootstrap_auroc",
    "bootstrap_mean",
    "brier_score",
    "categorical_cross_entropy",
    "check_exclusive",
    "choose_threshold",
    "class_hits",
    "class_log_odds",
    "confusion_matrix",
    "count_carriers",
    "count_comparable_images",
    "count_images",
    "expected_calibration_error",
    "has_enough_data",
    "holm",
    "interval",
    "mean_auroc",
    "mean_samples",
    "mid_ranks",
    "power_of",
    "predicted_classes",
    "reliability",
    "same_order",
    "sensitivity_at",
    "sensitivity_at_samples",
    "sensitivity_specificity",
    "softmax",
    "stratified_auroc",
    "stratified_auroc_samples",
]
