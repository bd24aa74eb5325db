"""Every error that a user of cxr_compress can cause: one small family, one clear line each."""

from __future__ import annotations


class CompressionError(Exception):
    """Something the user can put right: the message says what was expected, what arrived and what to do.

    Commands print the message as one line and end with exit code 2; no traceback is shown.
    """


class UnsupportedLayerError(CompressionError):
    """A layer, or the way it is wired, is outside what an operation can do exactly.

    Attributes:
        reason: what is wrong, without what to do about it.
    """

    def __init__(self, reason: str, advice: str = "") -> None:
        """Say what is wrong and, as a clause of its own, what to do about it."""
        super().__init__(f"{reason}: {advice}" if advice else reason)
        self.reason = reason


class BudgetError(CompressionError):
    """A budget contradicts another one or lies below what the model can reach."""


class DataError(CompressionError):
    """An image, a label file or a data set is missing, damaged or contradicts itself."""


class ModelFileError(CompressionError):
    """A model file is missing, damaged, of another kind or made by a newer version."""


class RuntimeUnavailableError(CompressionError):
    """No TFLite runtime on this machine can run the model; the message says what to install."""
