"""Thresholds and probabilities of the files of cxr_convert, chosen on the dev part of the data set that it is given."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

import numpy as np
from absl import flags

from cxr_compress.cli.common import UsageError
from cxr_compress.cli.quiet import Say
from cxr_compress.data import Dataset, decode_split
from cxr_compress.errors import DataError
from cxr_compress.evaluate import Match, file_logits, fit_info, fittable, match_findings

if TYPE_CHECKING:
    from cxr_compress.device.modelinfo import ModelInfo
    from cxr_compress.lite import LiteModel

# Dev is parted by patient and seed, but of which films a model from elsewhere was trained, nobody here knows.
_HELD_OUT = "which the model must not have been trained on"
_REPORT_EVERY = 128


def define_fit_flag(values: flags.FlagValues) -> None:
    """Define it."""
    text = (
        "With --dataset: fit the probabilities and choose the thresholds of each file on the dev part of that set. "
        "Films that the model was trained on flatter both."
    )
    flags.DEFINE_boolean("fit_thresholds", True, text, flag_values=values)


def check_fit_flag(values: flags.FlagValues) -> None:
    """Find what contradicts itself before the slow part starts.

    Raises:
        UsageError: it is asked for without a data set.
    """
    if values["fit_thresholds"].present and values.fit_thresholds and not values.dataset:
        raise UsageError("--fit_thresholds needs films with labels: give --dataset and --data_dir")


@dataclass(frozen=True)
class DevFilms:
    """The dev films of a set, and which findings of the model they can tell about.

    Attributes:
        dataset: the set.
        images: uint8, its dev films decoded.
        match: the findings that are to be fitted.
    """

    dataset: Dataset
    images: np.ndarray
    match: Match

    def fit(self, info: ModelInfo, lite: LiteModel, say: Say) -> ModelInfo:
        """What one file is to say of itself, with its own calibration and thresholds."""
        logits = file_logits(lite.content, info, self.images, progress=partial(_progress, say, lite.quant_type))
        columns = list(self.match.logits)
        return fit_info(
            info,
            self.dataset.dev.labels[:, list(self.match.labels)],
            logits[:, columns],
            # What the offsets undo: the class weights of the loss.
            np.exp(-np.asarray(info.logit_offset)[columns]),
            films=f"{len(self.dataset.dev)} dev films of {self.dataset.name}",
            held_out=_HELD_OUT,
            columns=columns,
        )


def dev_films(values: flags.FlagValues, dataset: Dataset | None, info: ModelInfo, say: Say) -> DevFilms | None:
    """The films to fit on; None where no set is given, and with a line that says why where it tells nothing.

    Raises:
        DataError: a film cannot be read.
    """
    if dataset is None or not values.fit_thresholds:
        return None
    try:
        match = match_findings(info.labels, dataset.findings, logits=len(info.labels))
    except DataError as error:
        say(f"thresholds stay at 0.5: {error}")
        return None
    known = set(fittable(dataset.dev.labels))
    pairs = [pair for pair in zip(match.findings, match.logits, match.labels, strict=True) if pair[2] in known]
    if not pairs:
        say("thresholds stay at 0.5: no finding of the model is both present and absent among the dev films")
        return None
    findings, logits, labels = zip(*pairs, strict=True)
    return DevFilms(dataset, decode_split(dataset.dev, info.preprocess), Match(findings, logits, labels))


def _progress(say: Say, name: str, done: int, total: int) -> None:
    if done == total or done % _REPORT_EVERY == 0:
        say(f"{name}: thresholds, {done} of {total} dev films")
