"""Find the weights in what a pickle holds: a state dict, a wrapper around one, or a whole module of placeholders."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from cxr_compress.errors import ModelFileError
from cxr_compress.models.tensor_file.values import Placeholder, TensorRecord

# Where training scripts keep the weights in a checkpoint, best first.
_WRAPPERS = ("state_dict", "model_state_dict", "model_state", "model", "net", "network", "module", "weights")
_DEEPEST = 64  # modules in modules; DenseNets need six
_MOST_NAMES = 100_000


def find_weights(value: Any) -> tuple[dict[str, TensorRecord], dict[str, Any]]:
    """Give the tensors by dotted name, and what else the top level says.

    Args:
        value: of the pickle.

    Returns:
        Tensors, and attributes of the checkpoint or module that are neither tensors nor modules.

    Raises:
        ModelFileError: no weights are there.
    """
    for _ in range(_DEEPEST):
        inner = _unwrapped(value)  # first: beside the weights a checkpoint may hold the state of a random generator
        if inner is None:
            break
        value = inner
    tensors = dict(_tensors(value))
    if tensors:
        return tensors, _extras(value)
    raise ModelFileError(
        "it holds no weights by name: expected a state dict, a checkpoint with one under 'state_dict', or a module"
    )


def _unwrapped(value: Any) -> Any:
    """Give what lies in a wrapper; None where nothing does."""
    if not isinstance(value, dict):
        return None
    return next((value[key] for key in _WRAPPERS if isinstance(value.get(key), dict | Placeholder)), None)


def _tensors(value: Any) -> Iterator[tuple[str, TensorRecord]]:
    """Yield tensors of a state dict, or of a module and the modules in it."""
    if isinstance(value, dict):
        for name, item in value.items():
            if isinstance(name, str) and isinstance(item, TensorRecord):
                yield name, item
        return
    seen = 0
    waiting: list[tuple[str, Any, int]] = [("", value, 0)]
    while waiting:
        prefix, module, depth = waiting.pop()
        state = getattr(module, "state", None) if isinstance(module, Placeholder) else None
        if not isinstance(state, dict):
            continue
        seen += 1
        if seen > _MOST_NAMES or depth > _DEEPEST:
            raise ModelFileError("its modules contain one another: the file is damaged")
        yield from _own_tensors(prefix, state)
        waiting += [(f"{prefix}{name}.", inner, depth + 1) for name, inner in _named(state, "_modules")]


def _own_tensors(prefix: str, state: dict[Any, Any]) -> Iterator[tuple[str, TensorRecord]]:
    passing = state.get("_non_persistent_buffers_set")
    left_out = {name for name in passing if isinstance(name, str)} if isinstance(passing, list | tuple) else set()
    for kind in ("_parameters", "_buffers"):
        for name, item in _named(state, kind):
            if isinstance(item, TensorRecord) and name not in left_out:
                yield f"{prefix}{name}", item


def _named(state: dict[Any, Any], kind: str) -> Iterator[tuple[str, Any]]:
    items = state.get(kind)
    if isinstance(items, dict):
        yield from ((name, item) for name, item in items.items() if isinstance(name, str))


def _extras(value: Any) -> dict[str, Any]:
    """Give attributes that hold a text, a number, or a list of either."""
    state = value.state if isinstance(value, Placeholder) else value
    plain = (str, int, float, bool)
    found = {}
    for name, item in state.items():
        flat = isinstance(item, list | tuple) and all(isinstance(part, plain) for part in item)
        if isinstance(name, str) and not name.startswith("_") and (flat or isinstance(item, plain)):
            found[name] = item
    return found
