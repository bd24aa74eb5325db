"""The words that a field of a recipe may hold, and the bounds of its numbers."""

from __future__ import annotations

# Here and not only where they are made: a wrong name is refused before anything slow is loaded.
CRITERIA = ("l1", "l2", "geometric_median", "bn_scale", "taylor", "apoz", "lasso", "random")
SCOPES = ("global", "local", "sensitivity")
REDUCTIONS = ("sum", "mean", "max")
NORMALIZERS = ("mean", "max", "none")
THRESHOLD_UNITS = ("absolute", "std")
ALLOCATIONS = ("layer", "global", "erk")
SCHEDULES = ("constant", "polynomial", "cubic")
PATTERNS = ("unstructured", "2:4", "block")
CALIBRATION_METHODS = ("minmax", "percentile", "mse")
QAT = ("auto", "never", "always")
QUANT_TYPES = ("none", "fp16", "dynamic", "int8", "int8_float_io", "int16x8")
MATCHES = ("name", "position")
COLORS = ("", "gray", "rgb")
# How a training image may be changed; their usual ranges are those of cxr_compress.train.batches.
AUGMENT = ("shift", "rotation", "scale", "contrast", "brightness", "gamma", "mirror")

# What a field must hold, by the name of the field.
COUNTS = (
    *("input_size", "epochs", "batch_size", "round_to", "min_channels", "removal_steps", "qat_epochs", "threads"),
    *("scoring_images", "reconstruction_images", "recalibration_images", "calibration_images"),
)
NOT_NEGATIVE = (
    *("recovery_epochs", "sparsity_epochs", "finetune_epochs", "schedule_epochs", "feature_weight", "auto_fallback"),
    *("max_auroc_drop", "margin", "weight_decay"),
)
RATES = (
    *("learning_rate", "recovery_learning_rate", "sparsity_learning_rate", "finetune_learning_rate"),
    "qat_learning_rate",
)
CHOICES = {
    "criterion": CRITERIA,
    "scope": SCOPES,
    "group_reduction": REDUCTIONS,
    "normalizer": NORMALIZERS,
    "threshold_unit": THRESHOLD_UNITS,
    "sparsity_allocation": ALLOCATIONS,
    "sparsity_schedule": SCHEDULES,
    "sparsity_pattern": PATTERNS,
    "calibration_method": CALIBRATION_METHODS,
    "qat": QAT,
    "quant_type": QUANT_TYPES,
    "match": MATCHES,
    "color": COLORS,
}
