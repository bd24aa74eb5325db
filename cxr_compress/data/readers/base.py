"""What the readers share: what they are asked for, and the words sets use for people."""

from __future__ import annotations

import enum
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from cxr_compress.data.dataset import Dataset
from cxr_compress.errors import DataError

UNKNOWN_AGE = math.nan
_MAX_AGE = 110  # ChestX-ray14 has images of people of 148, 155, 411 and 414 years: typing errors, so unknown
_DAYS, _WEEKS, _MONTHS = 365.25, 52.18, 12.0
_AGE_UNITS = {"Y": 1.0, "M": _MONTHS, "W": _WEEKS, "D": _DAYS}  # as DICOM writes them: 058Y, 006M
_SEXES = {"F": "F", "FEMALE": "F", "M": "M", "MALE": "M"}
_VIEWS = {
    "PA": "PA",
    "AP": "AP",
    **dict.fromkeys(("L", "LL", "RL", "LAT", "LATERAL"), "L"),
}
_TRUE, _FALSE = frozenset({"true", "t", "yes", "1"}), frozenset({"false", "f", "no", "0"})


class Missing(enum.Enum):
    """What a reader does about images that the set's list names and the folder lacks."""

    REFUSE = enum.auto()
    DROP = enum.auto()
    KEEP = enum.auto()  # for those who look for such images


@dataclass(frozen=True)
class Request:
    """What a reader is asked for; the fields are those of ``load_dataset``.

    Attributes:
        data_dir: Where the set lies.
        dev_fraction: Share of train's patients for dev.
        seed: Of the choice of those patients.
        missing: What to do about listed images that are not there.
        options: Of this reader; values of the right type, or as text.
    """

    data_dir: Path
    dev_fraction: float = 0.1
    seed: int = 0
    missing: Missing = Missing.REFUSE
    options: Mapping[str, Any] = field(default_factory=dict)

    def flag(self, name: str, default: bool = False) -> bool:
        """A yes-or-no option."""
        text = str(self.options.get(name, default)).lower()
        if text not in _TRUE | _FALSE:
            raise DataError(f"expected the option {name} to be true or false, got {self.options[name]!r}")
        return text in _TRUE

    def text(self, name: str, default: str = "", choices: Sequence[str] = ()) -> str:
        """An option that is text, one of the choices if there are any."""
        value = str(self.options.get(name, default))
        if choices and value not in choices:
            raise DataError(f"expected the option {name} to be one of {', '.join(choices)}; got {value!r}")
        return value

    def number(self, name: str, default: float) -> float:
        """An option that is a number."""
        try:
            return float(self.options.get(name, default))
        except (TypeError, ValueError) as error:
            raise DataError(f"expected the option {name} to be a number, got {self.options[name]!r}") from error

    def names(self, name: str) -> tuple[str, ...]:
        """An option that is a list: a sequence, or text with ``|`` between the names (a comma may be part of one)."""
        value = self.options.get(name, ())
        return tuple(value.split("|")) if isinstance(value, str) else tuple(map(str, value))


@dataclass(frozen=True)
class Reader:
    """How one kind of set is read.

    Attributes:
        read: Gives the set as it is: what ``find_problems`` finds is not raised here.
        options: The names it knows.
        has_list: The set comes with a list of its images, so some may be missing.
    """

    read: Callable[[Request], Dataset]
    options: tuple[str, ...] = ()
    has_list: bool = False


def check_options(name: str, options: Mapping[str, Any], known: Sequence[str]) -> None:
    """Refuses an option that a reader does not know: a typing error would change nothing, silently.

    Raises:
        DataError: Names what is known.
    """
    for option in options:
        if option not in known:
            told = f"it knows {', '.join(sorted(known))}" if known else "it has none"
            raise DataError(f"{name}: unknown option {option!r}; {told}")


def parse_age(text: str) -> float:
    """Years from "58", "058Y", "006M" or "58.0"; NaN where empty or beyond what people reach.

    Raises:
        ValueError: Not an age at all.
    """
    text = text.strip().upper()
    if not text:
        return UNKNOWN_AGE
    unit = _AGE_UNITS.get(text[-1])
    years = float(text if unit is None else text[:-1]) / (unit or 1.0)
    return years if 0 <= years <= _MAX_AGE else UNKNOWN_AGE


def parse_sex(text: str) -> str:
    """Gives "F" or "M" from what sets write for them, else nothing."""
    return _SEXES.get(text.strip().upper(), "")


def parse_view(text: str) -> str:
    """Gives "PA", "AP" or "L" from what sets write for them, else nothing."""
    return _VIEWS.get(text.strip().upper(), "")


def keep_existing(request: Request, who: str, counts: Mapping[str, tuple[int, int]]) -> None:
    """Refuses missing images, if the request does.

    Args:
        request: With what to do about them.
        who: The set.
        counts: Split name -> (images missing, images listed).

    Raises:
        DataError: Images are missing, and the request is to refuse.
    """
    if request.missing is not Missing.REFUSE or not any(missing for missing, _ in counts.values()):
        return
    told = " and ".join(f"{missing} of {listed} {name} images" for name, (missing, listed) in counts.items())
    raise DataError(
        f"{who}: {told} are missing in {request.data_dir}; complete the download, or use allow_missing to work on "
        "the part that is there"
    )
