"""A model's config without some of its calls: plain data in, plain data out.

Keras writes a model as a list of layers, each with its calls (`inbound_nodes`), and a call as references to the outputs
it reads, `[layer, number of its call, number of the output, ...]`. Taking a call out leaves references to it: they are
led to what is read in its place, and the calls behind it are counted anew.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

Config = dict[str, Any]
Reference = tuple[str, int, int]
# By path of a layer and number of its call: the places of the inputs that it keeps; see `wiring.Wiring.fates`.
Fates = Mapping[tuple[str, int], tuple[int, ...]]


def without_calls(config: Config, fates: Fates) -> Config:
    """The config of a functional or Sequential model, edited in place, some calls of which go or keep fewer inputs.

    Layers without a call left go too, nested models included.

    Args:
        config: as `model.get_config()` gives it.
        fates: the calls that change: none of their inputs where a call goes; one of several where that input is read in
            its place.
    """
    if fates:
        _Level(config, "", fates).edit()
    return config


class _Level:
    """The config of one model, which may stand in that of another."""

    def __init__(self, config: Config, prefix: str, fates: Fates) -> None:
        self._config, self._prefix, self._fates = config, prefix, fates
        self._names = set(map(_name, config["layers"]))
        # What is read in place of an output, and the calls in place of whose outputs nothing is.
        self._instead: dict[Reference, Reference] = {}
        self._gone: set[tuple[str, int]] = set()
        self._numbers: dict[tuple[str, int], int] = {}
        # Keras counts the calls of a nested model from 1: number 0 is what built it.
        self._first: dict[str, int] = {}
        calls = [layer.get("inbound_nodes") for layer in config["layers"]]
        for name, number, _ in _references([calls, config.get("output_layers")], self._names):
            self._first[name] = min(number, self._first.get(name, number))

    def edit(self) -> list[int] | None:
        """Take the calls out.

        Returns:
            By output of the model, the number of the input that is handed on unchanged, -1 where layers make it; None
            if nothing makes one of them any more.
        """
        if "output_layers" not in self._config:
            return self._edit_sequence()
        for layer in self._config["layers"]:
            self._edit_calls(layer)
        self._config["layers"] = [layer for layer in self._config["layers"] if not layer.pop("gone", False)]
        for layer in self._config["layers"]:
            layer["inbound_nodes"] = self._led(layer["inbound_nodes"])
        outputs = [self._resolved(reference) for reference in _references(self._config["output_layers"], self._names)]
        if None in outputs:
            return None
        self._config["output_layers"] = self._led(self._config["output_layers"])
        inputs = [reference[0] for reference in _references(self._config["input_layers"], self._names)]
        return [inputs.index(name) if name in inputs else -1 for name, *_ in filter(None, outputs)]

    def _edit_sequence(self) -> list[int] | None:
        """A Sequential model goes as a whole, or loses models that hand their input on."""
        stay, whole = [], self._config["layers"]
        for layer in whole:
            handed_on = self._inside(layer)
            if handed_on is None or self._fates.get((self._path(layer), 0)) == ():
                return None
            if handed_on != [0]:
                stay.append(layer)
        self._config["layers"] = stay
        return [-1] if any(layer["class_name"] != "InputLayer" for layer in stay) else [0]

    def _edit_calls(self, layer: Config) -> None:
        """Take the calls of one layer out and note what is read in their places."""
        handed_on, name = self._inside(layer), _name(layer)
        stay: list[Any] = []
        first = self._first.get(name, 0)
        for number, call in enumerate(layer["inbound_nodes"], start=first):
            reads = list(_references(call, self._names))
            kept = self._fates.get((self._path(layer), number - first), tuple(range(len(reads))))
            if handed_on is None or not kept:
                self._gone.add((name, number))
            elif len(kept) == 1 < len(reads):
                self._instead[name, number, 0] = reads[kept[0]]
            else:
                self._instead.update(
                    {(name, number, output): reads[place] for output, place in enumerate(handed_on) if place >= 0}
                )
                if all(place >= 0 for place in handed_on) and handed_on:
                    continue
                self._numbers[name, number] = first + len(stay)
                stay.append([call[place] for place in kept] if len(kept) < len(reads) else call)
        layer["gone"] = bool(layer["inbound_nodes"]) and not stay
        layer["inbound_nodes"] = stay

    def _inside(self, layer: Config) -> list[int] | None:
        """Edit a nested model; see `edit`. Layers that are none make all their outputs themselves."""
        if not isinstance(layer["config"].get("layers"), list):
            return []
        return _Level(layer["config"], f"{self._path(layer)}/", self._fates).edit()

    def _path(self, layer: Config) -> str:
        return self._prefix + _name(layer)

    def _resolved(self, reference: Reference) -> Reference | None:
        """What is read where a call read this."""
        while reference in self._instead:
            reference = self._instead[reference]
        name, number, output = reference
        return None if (name, number) in self._gone else (name, self._numbers.get((name, number), number), output)

    def _led(self, value: Any) -> Any:
        """The value with every reference in it led to what is read in its place."""
        reference = _as_reference(value, self._names)
        if reference is not None:
            target = self._resolved(reference)
            rest = [self._led(item) for item in value[3:]]
            return value if target is None else type(value)([*target, *rest])
        if isinstance(value, Mapping):
            return {key: self._led(item) for key, item in value.items()}
        return type(value)(map(self._led, value)) if isinstance(value, (list, tuple)) else value


def _name(layer: Config) -> str:
    return str(layer.get("name") or layer["config"]["name"])


def _references(value: Any, names: set[str]) -> Iterator[Reference]:
    """The references in an entry, in the order in which Keras numbers the inputs of a call."""
    reference = _as_reference(value, names)
    if reference is not None:
        yield reference
        value = value[3:]
    if isinstance(value, Mapping):
        value = list(value.values())
    if isinstance(value, (list, tuple)):
        for item in value:
            yield from _references(item, names)


_REFERENCE_LENGTH = 3


def _as_reference(value: Any, names: set[str]) -> Reference | None:
    if not isinstance(value, (list, tuple)) or len(value) < _REFERENCE_LENGTH:
        return None
    name, number, output = value[:3]
    is_one = isinstance(name, str) and name in names and type(number) is int and type(output) is int
    return (name, number, output) if is_one else None
