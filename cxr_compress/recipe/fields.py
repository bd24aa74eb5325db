"""The fields of a recipe: a section is a frozen dataclass, and all that is known of a field stands on the field.

`option(default, help, ...)` puts choices, bounds and help beside the default; the JSON keys, the flags of the commands,
their help and every message about a wrong value derive from there. A plug-in brings its own section:

    @dataclass(frozen=True)
    class BlurSection(Section):
        '''Blur training images.'''

        blur_radius: int = option(0, "Radius of the blur, pixels; 0 leaves images sharp.", at_least=0)

    register_section("blur", BlurSection)

From then on `{"format": 2, "blur": {"blur_radius": 3}}` is a recipe and `--blur_radius=3` a flag of cxr_compress.
"""

from __future__ import annotations

import dataclasses
import difflib
import functools
import math
import operator
import types
import typing
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from cxr_compress.errors import CompressionError

if TYPE_CHECKING:
    from typing import Self

Choices = Sequence[str] | Callable[[], Collection[str]]

_METADATA_KEY = "option"
_PROVIDED: dict[str, Callable[[], Collection[str]]] = {}


@dataclass(frozen=True)
class Option:
    """What is known of a field besides its type and default.

    Attributes:
        help: one sentence that reads alone, with the unit.
        flag: its name on the command line; "" for the name of the field.
        choices: the texts that it may hold, or a function that gives them, so that plug-ins count; empty for any.
        open_choices: whether the choices are only what is usual, and other texts are allowed.
        at_least: smallest value, itself allowed.
        above: smallest value, itself not allowed.
        at_most: largest value, itself allowed.
        below: largest value, itself not allowed.
        units: endings that a number may have on the command line -> factor.
        common: whether the short help of a command shows it.
    """

    help: str
    flag: str = ""
    choices: Choices = ()
    open_choices: bool = False
    at_least: float | None = None
    above: float | None = None
    at_most: float | None = None
    below: float | None = None
    units: Mapping[str, int] = dataclasses.field(default_factory=dict)
    common: bool = False

    @property
    def names(self) -> tuple[str, ...]:
        """The choices as they are now."""
        return tuple(self.choices() if callable(self.choices) else self.choices)

    @property
    def full_help(self) -> str:
        """The help, and what a registry says of each of its names; of an open choice what is usual."""
        choices = self.choices() if callable(self.choices) else ()
        if isinstance(choices, Mapping):
            return f"{self.help} " + "; ".join(f"{name}: {text}" for name, text in choices.items()) + "."
        return f"{self.help} One of {', '.join(self.names)}." if self.open_choices and self.names else self.help

    @property
    def bounds(self) -> str:
        """The bounds in words; empty where there are none."""
        low, high = self.at_least, self.at_most
        if low is not None and high is not None:
            return f"in [{low:g}, {high:g}]"
        if low is not None and self.below is not None:
            return f"in [{low:g}, {self.below:g})"
        words = [
            "" if low is None else f"{low:g} or more",
            "" if self.above is None else f"above {self.above:g}",
            "" if high is None else f"up to {high:g}",
            "" if self.below is None else f"below {self.below:g}",
        ]
        return " and ".join(filter(None, words))

    def admits(self, number: float) -> bool:
        """Whether a number keeps the bounds; NaN and infinity never do."""
        return (
            math.isfinite(number)
            and (self.at_least is None or number >= self.at_least)
            and (self.above is None or number > self.above)
            and (self.at_most is None or number <= self.at_most)
            and (self.below is None or number < self.below)
        )


def option(default: Any, help: str, **details: Any) -> Any:
    """A field of a section.

    Args:
        default: the value of a recipe that does not say it; a function that makes it where it is a list or a table.
        help: one sentence that reads alone, with the unit.
        details: the other attributes of `Option`.
    """
    metadata = {_METADATA_KEY: Option(help, **details)}
    if callable(default):
        return dataclasses.field(default_factory=default, metadata=metadata)
    return dataclasses.field(default=default, metadata=metadata)


def provide_choices(name: str, names: Callable[[], Collection[str]]) -> None:
    """Say what names a registry above the recipe knows; fields declared with `provided(name)` take them as choices.

    Args:
        name: of the registry.
        names: gives the names, or a mapping from them to a few words for the help.
    """
    _PROVIDED[name] = names


def provided(name: str) -> Callable[[], Collection[str]]:
    """The choices that `provide_choices` brought under a name; none, and so any text, as long as nothing did."""
    return lambda: _PROVIDED[name]() if name in _PROVIDED else ()


@dataclass(frozen=True)
class Kind:
    """A type that a field may have.

    Attributes:
        words: what a value must be, for messages.
        read: a value from JSON, a flag or Python in its one form.
    """

    words: str
    read: Callable[[Any], Any]


def _read_switch(value: Any) -> bool:
    if not isinstance(value, bool):
        raise TypeError
    return value


def _read_whole(value: Any) -> int:
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError
    return value


def _read_number(value: Any) -> float:
    return float(_read_amount(value))


def _read_amount(value: Any) -> int | float:
    """As it is: 1 and 1.0 are different budgets, one thing and all of it."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise TypeError
    return value


def _read_text(value: Any) -> str:
    if not isinstance(value, str):
        raise TypeError
    return value


def _read_texts(value: Any) -> tuple[str, ...]:
    if not isinstance(value, list | tuple):
        raise TypeError
    return tuple(map(_read_text, value))


def _read_pair(value: Any) -> tuple[int, int]:
    first, second = map(_read_whole, value)
    return first, second


def _read_numbers_by_name(value: Any) -> dict[str, float]:
    return {_read_text(name): _read_number(number) for name, number in value.items()}


def _read_texts_by_name(value: Any) -> dict[str, str]:
    return {_read_text(name): str(text) for name, text in value.items()}


KINDS: dict[Any, Kind] = {
    bool: Kind("true or false", _read_switch),
    int: Kind("a whole number", _read_whole),
    float: Kind("a number", _read_number),
    int | float: Kind("a number", _read_amount),
    str: Kind("a text", _read_text),
    tuple[str, ...]: Kind("a list of texts", _read_texts),
    tuple[int, int]: Kind("two whole numbers", _read_pair),
    Mapping[str, float]: Kind("a table of name and number", _read_numbers_by_name),
    Mapping[str, str]: Kind("a table of name and text", _read_texts_by_name),
}


@dataclass(frozen=True)
class Entry:
    """One field of a section.

    Attributes:
        owner: the section's class.
        key: its name there and in JSON.
        option: what is known of it.
        type: a key of `KINDS`.
        optional: whether it may hold nothing.
        default: the value of a recipe that does not say it.
    """

    owner: type[Section]
    key: str
    option: Option
    type: Any
    optional: bool
    default: Any

    @property
    def flag(self) -> str:
        """Its name on the command line, without dashes."""
        return self.option.flag or self.key

    @property
    def path(self) -> str:
        """Where it stands in a recipe, as removal.budget.macs."""
        return ".".join(filter(None, (section_path(self.owner), self.key)))

    def __str__(self) -> str:
        return f"{self.path} (--{self.flag})"

    def read(self, value: Any) -> Any:
        """The value in its one form.

        Raises:
            CompressionError: the wrong type, out of bounds, or none of the choices.
        """
        if value is None and self.optional:
            return None
        try:
            known = KINDS[self.type].read(value)
        except (TypeError, ValueError, AttributeError):
            words = KINDS[self.type].words + (" or null" if self.optional else "")
            raise CompressionError(f"expected {self} to be {words}; got {value!r}") from None
        self._check(known)
        return known

    def _check(self, value: Any) -> None:
        if isinstance(value, Mapping):
            for name, number in value.items():
                if isinstance(number, float) and not self.option.admits(number):
                    expected = self.option.bounds or "a finite number"
                    raise CompressionError(f"expected {self} of {name!r} to be {expected}; got {number!r}")
        elif isinstance(value, int | float) and not self.option.admits(value):
            expected = self.option.bounds or "a finite number"
            raise CompressionError(f"expected {self} to be {expected}; got {value!r}")
        elif isinstance(value, str) and not self.option.open_choices:
            names = self.option.names
            # "" stands for "not said" where it is the default.
            if names and value not in names and value != self.default:
                raise CompressionError(f"expected {self} to be one of {', '.join(names)}; got {value!r}")


@dataclass(frozen=True)
class Section:
    """A part of a recipe; its subclasses are frozen dataclasses of `option` fields and of further sections.

    The first line of a subclass's docstring is the heading of its flags in the help.
    """

    def __post_init__(self) -> None:
        """Bring every value into its one form and check it.

        Raises:
            CompressionError: a value of the wrong type, out of bounds, or that contradicts another.
        """
        for entry in entries_of(type(self)):
            object.__setattr__(self, entry.key, entry.read(getattr(self, entry.key)))
        self.check()

    def check(self) -> None:
        """Check what one field alone does not show; for subclasses, with `require`."""

    def require(self, holds: bool, key: str, expected: str) -> None:
        """Fail where a condition does not hold.

        Raises:
            CompressionError: says what was expected of the field `key`, and what it holds.
        """
        if not holds:
            entry = next(entry for entry in entries_of(type(self)) if entry.key == key)
            raise CompressionError(f"expected {entry} to be {expected}; got {getattr(self, key)!r}")

    def to_dict(self) -> dict[str, Any]:
        """The fields, ready for JSON."""
        values = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        return {key: _plain(value) for key, value in values.items()}

    @classmethod
    def from_dict(cls, values: Any) -> Self:
        """The inverse of `to_dict`; what is left out has its default.

        Raises:
            CompressionError: an unknown key, or a value that the field cannot hold.
        """
        path = section_path(cls)
        if not isinstance(values, Mapping):
            raise CompressionError(
                f"expected section {path} of a recipe to be a table of key and value; got {values!r}"
            )
        inner = subsections_of(cls)
        keys = [field.name for field in dataclasses.fields(cls)]
        for key in values:
            if key not in keys:
                raise CompressionError(f"unknown key {key!r} in section {path} of the recipe{_nearest(key, cls, keys)}")
        return cls(**{key: inner[key].from_dict(value) if key in inner else value for key, value in values.items()})


def _plain(value: Any) -> Any:
    if isinstance(value, Section):
        return value.to_dict()
    if isinstance(value, Mapping):
        return dict(value)
    return list(value) if isinstance(value, tuple) else value


def _nearest(key: str, cls: type[Section], keys: Sequence[str]) -> str:
    """What a wrong key was perhaps meant to be, or else all that there are."""
    # A flag of the section is a likely slip: --removal_steps is "steps" there.
    names = {**{name: name for name in keys}, **{entry.flag: entry.key for entry in entries_of(cls)}}
    close = difflib.get_close_matches(key, names, n=1)
    return f": did you mean {names[close[0]]!r}?" if close else f"; it has {', '.join(keys)}"


SECTIONS: dict[str, type[Section]] = {}


def register_section(name: str, section: type[Section]) -> None:
    """Let recipes have a section, with the flags that its fields name.

    Raises:
        CompressionError: the name or a flag is taken, or a field has a type that JSON and flags have no form for.
    """
    if name in SECTIONS:
        raise CompressionError(
            f"a recipe has a section {name!r} already ({SECTIONS[name].__qualname__}): register "
            f"{section.__qualname__} under another name"
        )
    taken = {entry.flag: entry.path for entry in all_entries()}
    for entry in _walk(section):
        if entry.flag in taken:
            raise CompressionError(
                f"--{entry.flag} of section {name!r} is the flag of {taken[entry.flag]} already: give the field "
                f"{entry.key} another flag"
            )
        taken[entry.flag] = f"{name}.{entry.key}"
    SECTIONS[name] = section


def all_entries() -> Iterator[Entry]:
    """The fields of all sections, in order."""
    for section in SECTIONS.values():
        yield from _walk(section)


def find_entry(flag: str) -> Entry:
    """The field behind a flag.

    Raises:
        CompressionError: no recipe has it; names the nearest one.
    """
    known = {entry.flag: entry for entry in all_entries()}
    if flag not in known:
        close = difflib.get_close_matches(flag, known, n=1)
        hint = f": did you mean {close[0]}?" if close else f"; known are {', '.join(sorted(known))}"
        raise CompressionError(f"unknown in a recipe: {flag}{hint}")
    return known[flag]


def section_path(section: type[Section]) -> str:
    """Where a section stands in a recipe, as removal.budget; empty where it is not registered."""
    return next((path for name, known in SECTIONS.items() for path in _paths(section, known, name)), "")


def _paths(section: type[Section], known: type[Section], path: str) -> Iterable[str]:
    if section is known:
        yield path
    for key, inner in subsections_of(known).items():
        yield from _paths(section, inner, f"{path}.{key}")


def _walk(section: type[Section]) -> Iterator[Entry]:
    """The fields of a section and of the sections in it, in order."""
    own = {entry.key: entry for entry in entries_of(section)}
    inner = subsections_of(section)
    for field in dataclasses.fields(section):
        if field.name in inner:
            yield from _walk(inner[field.name])
        else:
            yield own[field.name]


# By class: type hints are slow to resolve, and every recipe asks for them.
_HINTS: dict[type[Section], dict[str, Any]] = {}
_ENTRIES: dict[type[Section], tuple[Entry, ...]] = {}


def subsections_of(section: type[Section]) -> dict[str, type[Section]]:
    """The sections in a section, by key."""
    if section not in _HINTS:
        hints = typing.get_type_hints(section)
        _HINTS[section] = {field.name: hints[field.name] for field in dataclasses.fields(section)}
    kinds = _HINTS[section].items()
    return {key: kind for key, kind in kinds if isinstance(kind, type) and issubclass(kind, Section)}


def entries_of(section: type[Section]) -> tuple[Entry, ...]:
    """The fields of a section itself, in order.

    Raises:
        CompressionError: one that was not declared with `option`, or has a type that is not among `KINDS`.
    """
    if section not in _ENTRIES:
        inner = subsections_of(section)
        own = [field for field in dataclasses.fields(section) if field.name not in inner]
        _ENTRIES[section] = tuple(_entry(section, field, _HINTS[section][field.name]) for field in own)
    return _ENTRIES[section]


def _entry(section: type[Section], field: dataclasses.Field[Any], hint: Any) -> Entry:
    described, name = field.metadata.get(_METADATA_KEY), f"{section.__qualname__}.{field.name}"
    if described is None:
        raise CompressionError(f"declare {name} with option(default, help)")
    # None is an answer beside the type, not a part of it.
    kinds = typing.get_args(hint) if isinstance(hint, types.UnionType) else (hint,)
    kind = functools.reduce(operator.or_, (kind for kind in kinds if kind is not types.NoneType))
    if kind not in KINDS:
        raise CompressionError(
            f"{name} has the type {hint}, which recipes and flags have no form for: use bool, int, float, str, or the "
            "lists and tables of them that other sections use"
        )
    default = field.default_factory() if callable(field.default_factory) else field.default
    return Entry(section, field.name, described, kind, types.NoneType in kinds, default)
