"""Which machines train together, and which of them this process is: what the variable TF_CONFIG says, checked."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from cxr_compress.errors import CompressionError

_EXAMPLE = json.dumps(
    {"cluster": {"worker": ["10.0.0.1:12345", "10.0.0.2:12345"]}, "task": {"type": "worker", "index": 0}}
)
_KINDS = ("chief", "worker")
_LARGEST_PORT = 65535


@dataclass(frozen=True)
class Cluster:
    """The workers of one training, this process among them.

    Attributes:
        addresses: host:port of every worker; the first one is the chief, who alone reads and writes the run.
        index: Which of them this process is.
    """

    addresses: tuple[str, ...]
    index: int

    @property
    def is_chief(self) -> bool:
        """Whether this process keeps the run."""
        return self.index == 0

    def name(self, index: int) -> str:
        """A worker as a line names it; people count from 1."""
        return f"worker {index + 1} of {len(self.addresses)} ({self.addresses[index]})"


def read_cluster(environment: Mapping[str, str] = os.environ) -> Cluster:
    """Read ``TF_CONFIG``: a list of "worker" addresses, which may have one "chief" before it, and the own place in it.

    TensorFlow reads the variable too, but takes many mistakes for a cluster of one, or waits for ever.

    Raises:
        CompressionError: It is missing or malformed; the line shows how it should look.
    """
    text = environment.get("TF_CONFIG", "")
    if not text.strip():
        raise _wrong("is not set")
    try:
        given = json.loads(text)
    except ValueError:
        raise _wrong("is no JSON") from None
    if not isinstance(given, dict) or not all(isinstance(given.get(name), dict) for name in ("cluster", "task")):
        raise _wrong('needs the objects "cluster" and "task"')
    lists = _lists(given["cluster"])
    addresses = tuple(address for kind in _KINDS for address in lists.get(kind, ()))
    for address in addresses:
        _check_address(address)
    if len(set(addresses)) < len(addresses):
        raise _wrong("names an address twice")
    return Cluster(addresses, _place(given["task"], lists))


def _lists(cluster: Mapping[str, Any]) -> dict[str, list[Any]]:
    unknown = [kind for kind in cluster if kind not in _KINDS]
    if unknown:
        raise _wrong(f"names tasks of kind {unknown[0]!r}, and only {' and '.join(_KINDS)} train")
    if not cluster or not all(isinstance(tasks, list) and tasks for tasks in cluster.values()):
        raise _wrong("needs a list of addresses per kind of task")
    if len(cluster.get("chief", ())) > 1:
        raise _wrong("names more than one chief")
    return dict(cluster)


def _check_address(address: Any) -> None:
    host, _, port = str(address).rpartition(":")
    if not host or not port.isdigit() or not 0 < int(port) <= _LARGEST_PORT:
        raise _wrong(f"names the address {address!r}, which is no host:port")


def _place(task: Mapping[str, Any], lists: Mapping[str, list[Any]]) -> int:
    kind, index = task.get("type"), task.get("index")
    if not isinstance(kind, str) or kind not in lists:
        raise _wrong(f"says that this is a task of type {kind!r}, which the cluster has none of")
    if not isinstance(index, int) or isinstance(index, bool) or not 0 <= index < len(lists[kind]):
        raise _wrong(f"says that this is {kind} {index!r}, and the cluster's {kind}s are 0 to {len(lists[kind]) - 1}")
    return index + (len(lists["chief"]) if kind == "worker" and "chief" in lists else 0)


def _wrong(problem: str) -> CompressionError:
    return CompressionError(
        f"the environment variable TF_CONFIG {problem}: set it on each machine, on the first of two to '{_EXAMPLE}', "
        "on the other one to the same with index 1"
    )
