"""Training on several GPUs or machines with TensorFlow's own strategies, as one process would train on the same images.

Every worker takes its rows of the same global batches. Losses, gradients and the statistics of batch normalization are
those of the whole batch, so how many workers there are decides nothing but the time: a run may go on with fewer or more
of them, or with one process and no strategy at all.

Only the chief reads and writes the run. What it restores, and everything that is decided from (scores, when to stop),
it tells the others, so several machines need no shared disk, and no worker ever decides alone: one that went on while
another stopped would wait for ever. The run's `last.npz` is to this loop what Keras's BackupAndRestore is to
`model.fit`, which that callback needs: after a worker died, the restarted workers go on from the last finished epoch.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import re
import signal
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import tensorflow as tf

from cxr_compress.errors import CompressionError
from cxr_compress.train.checkpoints import Progress, RunFolder, short_json

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
        index: which of them this process is.
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
    """Read `TF_CONFIG`: a list of "worker" addresses, which may have one "chief" before it, and the own place in it.

    TensorFlow reads the variable too, but takes many mistakes for a cluster of one, or waits for ever.

    Raises:
        CompressionError: it is missing or malformed; the line shows how it should look.
    """
    text = environment.get("TF_CONFIG", "")
    if not text.strip():
        raise _wrong("is not set")
    try:
        config = json.loads(text)
    except ValueError:
        raise _wrong("is no JSON") from None
    if not isinstance(config, dict) or not all(isinstance(config.get(name), dict) for name in ("cluster", "task")):
        raise _wrong('needs the objects "cluster" and "task"')
    lists = _lists(config["cluster"])
    addresses = tuple(address for kind in _KINDS for address in lists.get(kind, ()))
    for address in addresses:
        _check_address(address)
    if len(set(addresses)) < len(addresses):
        raise _wrong("names an address twice")
    return Cluster(addresses, _place(config["task"], lists))


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


_DISTRIBUTIONS = ("none", "mirrored", "multi_worker")
_T = TypeVar("_T")
_ERRORS: dict[str, type[CompressionError]] = {kind.__name__: kind for kind in CompressionError.__subclasses__()}
_WORDS_AT_ONCE = 1 << 24  # 64 MB a message
_SHOWN = 60


def start_distribution(kind: str, log: Callable[[str], None] | None = None) -> Distribution | None:
    """Join the other workers, or take the GPUs of this machine; call it before TensorFlow does anything else.

    Args:
        kind: "none"; "mirrored", all GPUs of this machine (without GPUs: its processor); or "multi_worker", the
            machines that `TF_CONFIG` names, each with all its GPUs.
        log: takes one line before this waits for the others, which it does for as long as it takes.

    Returns:
        What `fit` and `run_training` take; None for "none".

    Raises:
        CompressionError: another word, `TF_CONFIG` is missing or malformed, or the others cannot be joined.
    """
    if kind not in _DISTRIBUTIONS:
        raise CompressionError(f"distribution must be one of {', '.join(_DISTRIBUTIONS)}, got {kind!r}")
    if kind == "none":
        return None
    if kind == "mirrored":
        # Without GPUs TensorFlow would take the first processor device alone; there are more only if asked for.
        devices = tf.config.list_logical_devices("GPU") or tf.config.list_logical_devices("CPU")
        return Distribution(tf.distribute.MirroredStrategy([device.name for device in devices]))
    cluster = read_cluster()
    if log:
        log(f"{cluster.name(cluster.index)}: waiting for all {len(cluster.addresses)} workers to be there")
    try:
        with _ctrl_c_ends():
            strategy = tf.distribute.MultiWorkerMirroredStrategy()
    except (tf.errors.OpError, RuntimeError) as error:
        raise CompressionError(
            f"{cluster.name(cluster.index)} cannot join the others ({str(error).splitlines()[0]}): look at the "
            "addresses in TF_CONFIG, which must be free and reachable, and start the same command on all machines"
        ) from error
    return Distribution(strategy, cluster)


class Distribution:
    """Makes one training out of several replicas of the model, on this machine and others.

    Attributes:
        strategy: TensorFlow's.
        cluster: the workers; None where there is this process alone.
        is_chief: whether this process is the one that reads, writes and decides.
        replicas: copies of the model, over all workers.
    """

    def __init__(self, strategy: tf.distribute.Strategy, cluster: Cluster | None = None) -> None:
        """Wrap a strategy that has just been made."""
        self.strategy = strategy
        self.cluster = cluster
        self.replicas = int(strategy.num_replicas_in_sync)
        self.is_chief = cluster is None or cluster.is_chief

    @property
    def workers(self) -> int:
        """Processes that train together."""
        return 1 if self.cluster is None else len(self.cluster.addresses)

    def share(self, batch_size: int) -> tuple[int, int]:
        """Which part of each batch this worker takes: (i, n), part i of n.

        Raises:
            CompressionError: the replicas cannot share a batch evenly.
        """
        if batch_size % self.replicas:
            raise CompressionError(
                f"the images of a batch must divide among {self.replicas} replicas of the model, got {batch_size}: "
                f"choose a batch size that is a multiple of {self.replicas}"
            )
        return (0 if self.cluster is None else self.cluster.index), self.workers

    def agree(self, value: Any) -> Any:
        """Give every worker the chief's value, which is JSON-ready."""
        return json.loads(self._from_chief(json.dumps(value).encode())) if self.workers > 1 else value

    def on_chief(self, act: Callable[[], _T]) -> _T | None:
        """Do something on the chief alone, after which all go on together; the others get None.

        Raises:
            CompressionError: the chief raised one; all workers raise it, so that none is left waiting.
        """
        value, failure = None, None
        if self.is_chief:
            try:
                value = act()
            except CompressionError as error:
                failure = error
        chiefs_failure = self.agree(None if failure is None else [type(failure).__name__, str(failure)])
        if failure is not None:
            raise failure
        if chiefs_failure is not None:
            raise _ERRORS.get(chiefs_failure[0], CompressionError)(chiefs_failure[1])
        return value

    def require_same(self, facts: Mapping[str, Any]) -> None:
        """Refuse to train where a worker has other settings or images than the chief.

        Raises:
            CompressionError: on every worker; on one that differs the line says in what.
        """
        mine = json.loads(json.dumps(facts))
        chief = self.agree(mine)
        differing = [name for name in sorted({*mine, *chief}) if mine.get(name) != chief.get(name)]
        others = [index for index in range(self.workers) if self._sum(self._at_own_place(len(differing) > 0))[index]]
        if differing:
            listed = ", ".join(
                f"{name} (chief {short_json(chief.get(name), _SHOWN)}, here {short_json(mine.get(name), _SHOWN)})"
                for name in differing
            )
            raise CompressionError(f"this worker was started otherwise than the chief: {listed}; give all the same")
        if others and self.cluster is not None:
            raise CompressionError(
                f"{self.cluster.name(others[0])} was started with other settings or images than the chief: its own "
                "message says which; give all workers the same"
            )

    def open_folder(self, path: Path, facts: Mapping[str, Any]) -> RunFolder:
        """The folder of a run, which only the chief reads and writes.

        Raises:
            CompressionError: as `RunFolder`, or the workers were not started alike.
            ModelFileError: as `RunFolder`.
        """
        return _SharedFolder(path, facts, self)

    def own_parts(self, variables: Sequence[Any]) -> list[Any]:
        """The first replica's variable of each: reading it asks no other worker, and all replicas hold the same."""
        return [self.strategy.experimental_local_results(variable)[0] for variable in variables]

    def assign(self, variable: Any, value: np.ndarray) -> None:
        """Set a variable on this worker's replicas; its own `assign` may also read it, which asks all workers."""
        for part in self.strategy.experimental_local_results(variable):
            part.assign(value)

    def spread_chiefs(self, variables: Sequence[Any]) -> None:
        """Set variables on all replicas to what the chief's first one has, to the bit."""
        mine = [np.asarray(variable.numpy()) for variable in self.own_parts(variables)]
        data = b"".join(array.tobytes() for array in mine)
        data = self._from_chief(data) if self.workers > 1 else data
        start = 0
        for variable, array in zip(variables, mine, strict=True):
            self.assign(variable, np.frombuffer(data, array.dtype, array.size, start).reshape(array.shape))
            start += array.nbytes

    @contextlib.contextmanager
    def guard(self) -> Iterator[None]:
        """Within it a worker that is gone is one clear line: TensorFlow notices within seconds (a heartbeat)."""
        try:
            yield
        except tf.errors.OpError as error:
            if self.cluster is None or not _means_lost(error):
                raise
            raise CompressionError(self._lost(self.cluster, str(error))) from error

    def _lost(self, cluster: Cluster, text: str) -> str:
        named = {int(index) for index in re.findall(r"/task:(\d+)", text)} - {cluster.index}
        who = cluster.name(named.pop()) if len(named) == 1 and max(named) < self.workers else "another worker"
        return (
            f"lost contact with {who}: its own message, if it left one, says why; all workers have to stop, finished "
            "epochs are kept: start the same command on all machines again"
        )

    def _sum(self, numbers: np.ndarray) -> np.ndarray:
        """The sum over the workers, on each of them."""
        if self.workers == 1:
            return numbers
        with self.guard():
            return self.strategy.reduce(tf.distribute.ReduceOp.SUM, tf.constant(numbers), axis=None).numpy()

    def _at_own_place(self, flag: bool) -> np.ndarray:
        places = np.zeros(self.workers, np.float32)
        places[0 if self.cluster is None else self.cluster.index] = flag
        return places

    def _from_chief(self, data: bytes) -> bytes:
        """The chief's bytes on every worker: a sum to which the others add nothing.

        Two bytes travel as one float32, which every device sums exactly; 32-bit words taken for floats would not
        survive (NaN, -0.0), and integers are not summed on every device.
        """
        length = np.frombuffer(np.uint64(len(data)).tobytes(), np.uint16) * np.float32(self.is_chief)
        count = int(np.frombuffer(self._sum(length).astype(np.uint16).tobytes(), np.uint64)[0])
        words = np.zeros((count + 1) // 2, np.uint16)
        if self.is_chief:
            words = np.frombuffer(data + b"\0" * (count % 2), np.uint16)
        parts = range(0, len(words), _WORDS_AT_ONCE)
        sums = [self._sum(words[start : start + _WORDS_AT_ONCE].astype(np.float32)) for start in parts]
        return b"".join(part.astype(np.uint16).tobytes() for part in sums)[:count]


class _SharedFolder(RunFolder):
    """The folder of a run of several workers: on the chief a `RunFolder`, on the others nothing but its answers."""

    def __init__(self, path: Path, facts: Mapping[str, Any], distribution: Distribution) -> None:
        """Open or begin the run on the chief, and see that all workers are to train the same."""
        self.path = path
        self._together = distribution
        distribution.require_same(facts)
        distribution.on_chief(lambda: RunFolder.__init__(self, path, facts))

    def save(self, progress: Progress, state: Mapping[str, Sequence[Any]], scored: Sequence[Any] | None = None) -> None:
        """As `RunFolder.save`, on the chief."""
        parts = {kind: self._together.own_parts(variables) for kind, variables in state.items()}
        best = None if scored is None else self._together.own_parts(scored)
        self._together.on_chief(lambda: RunFolder.save(self, progress, parts, best))

    def restore(self, state: Mapping[str, Sequence[Any]]) -> Progress:
        """As `RunFolder.restore`; the chief reads, and all go on from what it has."""
        parts = {kind: self._together.own_parts(variables) for kind, variables in state.items()}
        progress = self._together.on_chief(lambda: RunFolder.restore(self, parts))
        for variables in state.values():
            self._together.spread_chiefs(variables)
        return Progress(**self._together.agree(None if progress is None else dataclasses.asdict(progress)))

    def restore_best(self, progress: Progress, weights: Sequence[Any]) -> None:
        """As `RunFolder.restore_best`; the chief reads, and all get what it has."""
        parts = self._together.own_parts(weights)
        self._together.on_chief(lambda: RunFolder.restore_best(self, progress, parts))
        self._together.spread_chiefs(weights)

    def keep_bad_batch(self, epoch: int, batch: int, image_ids: Sequence[str]) -> None:
        """As `RunFolder.keep_bad_batch`, on the chief."""
        self._together.on_chief(lambda: RunFolder.keep_bad_batch(self, epoch, batch, image_ids))


def _means_lost(error: tf.errors.OpError) -> bool:
    if isinstance(error, tf.errors.InternalError | tf.errors.CancelledError):
        return "ollective" in str(error)
    return isinstance(error, tf.errors.UnavailableError | tf.errors.DeadlineExceededError | tf.errors.AbortedError)


@contextlib.contextmanager
def _ctrl_c_ends() -> Iterator[None]:
    """Let Ctrl-C end the process at once: TensorFlow waits for the other workers without looking for it."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGINT, signal.SIG_DFL)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
