"""Stages on disk: what a stage made, from what, and whether it still holds.

A stage's key is the hash of everything that decides its result: its part of the recipe and the hashes of what it
reads. A stage whose manifest carries the same key and whose files are still the ones it wrote is not run again, so a
killed run goes on where it was and a changed recipe redoes exactly what depends on the change.

A file that is no longer the one that a stage wrote was changed by somebody: it is put aside before the stage runs
again. A folder belongs to the run that began it (`claim`): what another recipe or model made is not replaced.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import platform
import shutil
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from importlib import metadata
from itertools import count
from pathlib import Path
from typing import Any

from cxr_compress import __version__
from cxr_compress.device.benchmark import peak_memory_bytes
from cxr_compress.errors import CompressionError
from cxr_compress.files import make_folder, write_text
from cxr_compress.recipe import Recipe

_CLEAR = Path("/proc/self/clear_refs")
_RESET_PEAK = "5"  # what Linux wants to hear in clear_refs


def reset_peak() -> None:
    """Start counting anew where the system can (Linux); elsewhere the peak stays that of the whole process."""
    with contextlib.suppress(OSError):
        _CLEAR.write_text(_RESET_PEAK, encoding="ascii")


def peak_bytes() -> int:
    """The most memory that this process had at a time since `reset_peak`, in bytes."""
    return peak_memory_bytes() or 0


Log = Callable[[str], None]

_DELIVERED = ("plan.json", "report.json")  # beside the .tflite files: what a person may have put to use


@dataclass(frozen=True)
class Artifacts:
    """The files of a finished stage.

    Attributes:
        paths: by name.
        sha256: by name.
        facts: what the stage noted about itself.
    """

    paths: Mapping[str, Path]
    sha256: Mapping[str, str]
    facts: Mapping[str, Any]

    @property
    def keras_file(self) -> Path:
        """The Keras model among them; a stage makes one at most."""
        return next(path for path in self.paths.values() if path.suffix == ".keras")

    @property
    def keras_hash(self) -> dict[str, str]:
        """Its name and sha256."""
        return {name: self.sha256[name] for name, path in self.paths.items() if path.suffix == ".keras"}


class StageStore:
    """The output folder of one run.

    Attributes:
        folder: it.
        threads: that TensorFlow computes with, for the manifests; 0 where that is not known.
    """

    def __init__(self, folder: Path, log: Log, threads: int = 0) -> None:
        self.folder, self.threads = folder, threads
        self._log = log

    def run(
        self,
        stage: str,
        inputs: Mapping[str, Any],
        files: Sequence[str],
        make: Callable[[Path], Mapping[str, Any] | None],
    ) -> Artifacts:
        """The files of a stage, made now unless they stand already.

        Args:
            stage: its name.
            inputs: JSON-ready, everything that decides the result.
            files: names of the files in the output folder (a subfolder in front, if any) that `make` writes, each
                atomically.
            make: is given a folder for what it needs on the way (checkpoints); returns facts for the manifest.

        Raises:
            CompressionError: whatever `make` raises; what earlier stages made stays.
        """
        key = _key(stage, inputs)
        manifest = self.folder / "manifests" / f"{stage}.json"
        paths = {name: self.folder / name for name in files}
        if self.stands(stage, inputs, files):
            self._attempted(stage).unlink(missing_ok=True)  # of a kill just after the manifest
            self._log(f"{stage}: done before, kept")
            known = _read(manifest)
            return Artifacts(paths, known["files"], known.get("facts", {}))
        for folder in {manifest.parent, *(path.parent for path in paths.values())}:
            make_folder(folder)
        self._keep_edited(stage, files)
        self._tell_replaced(stage, key, files)
        self._log(f"{stage}: started")
        started = time.monotonic()
        reset_peak()
        work = self.folder / "work" / f"{stage}-{key[:12]}"
        with self._attempt(stage, files):
            facts = make(work) or {}
        hashes = {name: file_hash(path) for name, path in paths.items()}
        seconds = round(time.monotonic() - started, 1)
        record = {
            "stage": stage,
            "key": key,
            "version": __version__,
            "versions": dict(versions()),
            "threads": self.threads,
            "inputs": inputs,
            "files": hashes,
            "facts": facts,
            "seconds": seconds,
            "peak_memory_bytes": peak_bytes(),
        }
        write_text(manifest, json.dumps(record, indent=2, default=str) + "\n")
        # Only now: until the manifest stands, a restart needs the checkpoints.
        shutil.rmtree(work, ignore_errors=True)
        self._attempted(stage).unlink(missing_ok=True)
        self._log(f"{stage}: finished in {seconds:.0f} s")
        # As a later call reads them: tuples are lists there.
        return Artifacts(paths, hashes, self.facts(stage))

    def stands(self, stage: str, inputs: Mapping[str, Any], files: Sequence[str]) -> bool:
        """Whether a stage was made from just these inputs, and its files are still what it wrote."""
        known = self.manifest(stage)
        return known.get("key") == _key(stage, inputs) and all(
            file_hash(self.folder / name) == known["files"].get(name) for name in files
        )

    def facts(self, stage: str) -> dict[str, Any]:
        """What a finished stage noted about itself."""
        return dict(self.manifest(stage).get("facts", {}))

    def manifest(self, stage: str) -> dict[str, Any]:
        """All that is on record of a finished stage; nothing of one that is not."""
        return _read(self.folder / "manifests" / f"{stage}.json")

    def _keep_edited(self, stage: str, files: Sequence[str]) -> None:
        """Put aside what somebody changed after the stage wrote it: to make it again would lose that work."""
        written = self.manifest(stage).get("files", {})
        attempt = _load(self._attempted(stage))
        if attempt and "files" not in attempt:
            return  # cut short in the middle: what differs is what it had begun to write
        left = attempt.get("files", {})
        for name in files:
            path = self.folder / name
            if name not in written or not path.is_file() or file_hash(path) in (written[name], left.get(name)):
                continue
            kept = next(free for free in _beside(path) if not os.path.lexists(free))
            try:
                path.rename(kept)
            except OSError as error:
                raise CompressionError(
                    f"{name} was changed since this run made it, and could not be kept as {kept.name} "
                    f"({error.strerror or error}): move it away, then run the same command again"
                ) from error
            self._log(f"{name} was changed since this run made it: kept as {kept.name}, and made again")

    def _tell_replaced(self, stage: str, key: str, files: Sequence[str]) -> None:
        """Say which results of an earlier call go, so that nobody takes the new ones for them."""
        known = self.manifest(stage)
        gone = [name for name in files if _is_delivered(name) and (self.folder / name).is_file()]
        if gone and known.get("key", key) != key:
            how = "other choices" if known.get("version") == __version__ else f"version {known.get('version')}"
            self._log(f"{stage}: replaces {' and '.join(gone)}, which this run made before with {how}")

    @contextlib.contextmanager
    def _attempt(self, stage: str, files: Sequence[str]) -> Iterator[None]:
        """Keep on record that a stage that was made before is being made again, and what it left if it failed."""
        path = self._attempted(stage)
        if not self.manifest(stage):
            yield
            return
        make_folder(path.parent)
        write_text(path, json.dumps({"stage": stage}))
        try:
            yield
        except Exception:
            left = {name: file_hash(self.folder / name) for name in files}
            write_text(path, json.dumps({"stage": stage, "files": left}))
            raise

    def _attempted(self, stage: str) -> Path:
        return self.folder / "work" / f"{stage}.json"


@cache
def versions() -> tuple[tuple[str, str], ...]:
    """Python and the libraries that a result may depend on."""
    found = [("python", platform.python_version())]
    for name in ("tensorflow", "tf_keras", "tensorflow-model-optimization", "numpy", "ai-edge-litert"):
        try:
            found.append((name, metadata.version(name)))
        except metadata.PackageNotFoundError:
            found.append((name, "not installed"))
    return tuple(found)


def _key(stage: str, inputs: Mapping[str, Any]) -> str:
    text = json.dumps({"stage": stage, "version": __version__, "inputs": inputs}, sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()


def _read(manifest: Path) -> dict[str, Any]:
    """A manifest, or nothing where there is none or a kill left half of one: the stage then runs again."""
    record = _load(manifest)
    return record if isinstance(record.get("files"), dict) else {}


def _load(path: Path) -> dict[str, Any]:
    """A JSON object; an empty one where there is none."""
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return record if isinstance(record, dict) else {}


def _is_delivered(name: str) -> bool:
    return name in _DELIVERED or (name.endswith(".tflite") and "/" not in name)


def _beside(path: Path) -> Iterator[Path]:
    """plan.edited.json, plan.edited2.json, and so on."""
    yield path.with_name(f"{path.stem}.edited{path.suffix}")
    yield from (path.with_name(f"{path.stem}.edited{number}{path.suffix}") for number in count(2))


def file_hash(path: Path) -> str:
    """The hash of a file; empty where there is none."""
    return hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else ""


MADE_FROM = "made_from.json"
_MANIFESTS = "manifests"
# What lies in the folder of a run or a search besides the results of its stages.
_RESULTS = (
    *("recipe.json", "search.json", "search.png", "candidates/*/*.json", f"{_MANIFESTS}/*.json"),
    # Of a training by cxr_train, whose folder is no place for a run of another kind.
    *("training.json", "run.json"),
)
_ELSE = "give another --output_dir, or --overwrite to begin anew in this one"
_WORDS = {
    "source": "what it starts from",
    "weights": "the weights of the model to start from",
    "images": "the images, labels or patients of train and dev",
}


def refuse_foreign(folder: Path, recipe: Recipe, results: Iterable[str], *, overwrite: bool) -> None:
    """Refuse a folder that holds no run, if something there has the name of a result; writes nothing.

    Args:
        folder: where a run is to go.
        recipe: of the run; it names the model.
        results: names of what the stages of a run leave, as globs in which {model} is the model's name.
        overwrite: allow it.

    Raises:
        CompressionError: names it.
    """
    if folder.exists() and not folder.is_dir():
        raise CompressionError(f"--output_dir {folder} is a file: give a folder")
    if overwrite or is_run(folder):
        return
    for taken in _present(folder, (name.format(model=recipe.model.name) for name in results)):
        name = taken.relative_to(folder).as_posix()
        raise CompressionError(f"--output_dir {folder} holds {name} and is not a run of cxr_compress: {_ELSE}")


def is_run(folder: Path) -> bool:
    """Whether a run was begun in a folder, by this version or by one before it, which left no made_from.json."""
    return (folder / MADE_FROM).is_file() or (
        (folder / "recipe.json").is_file()
        and (folder / _MANIFESTS).is_dir()
        and not (folder / "training.json").exists()
    )


def claim(folder: Path, recipe: Recipe, made_from: Mapping[str, Any], *, first_stage: str, overwrite: bool) -> None:
    """Begin a run in a folder, or go on with the one that it holds if that started from the same.

    Args:
        folder: of the run; made if it is missing.
        recipe: of this call; kept as recipe.json.
        made_from: what the run starts from, JSON-ready.
        first_stage: name of the stage that makes the original model.
        overwrite: begin anew where another run is.

    Raises:
        CompressionError: it holds another run; says what differs. Nothing is written then.
    """
    now = json.loads(json.dumps(made_from))
    known = _read_made_from(folder, first_stage)
    if (differing := list(_differences(known, now))) and not overwrite:
        raise CompressionError(f"--output_dir holds another run; it differs in {', '.join(differing)}: {_ELSE}")
    make_folder(folder)
    write_text(folder / MADE_FROM, json.dumps(now, indent=1, sort_keys=True) + "\n")
    write_text(folder / "recipe.json", recipe.to_json())


def refuse_own_source(folder: Path, source: Path, results: Iterable[str]) -> None:
    """Refuse to start from a file that the run would write over.

    Raises:
        CompressionError: the model to start from is one of the results in the folder.
    """
    for result in _present(folder, results):
        if result.samefile(source):
            name = result.relative_to(folder).as_posix()
            raise CompressionError(
                f"the model to start from is {name} in --output_dir, which this run would replace: give another "
                "--output_dir"
            )


def copy_for_forecast(folder: Path, scratch: Path, stages: Iterable[str]) -> None:
    """Put into an empty folder what some stages of a run have made, for a forecast; the run is only read."""
    if not is_run(folder):
        return
    make_folder(scratch / _MANIFESTS)
    names = [MADE_FROM]
    for stage in stages:
        manifest = _json_of(folder / _MANIFESTS / f"{stage}.json")
        if files := manifest.get("files"):
            names.append(f"{_MANIFESTS}/{stage}.json")
            # What somebody changed since is made again, in the forecast as in the run.
            names += [name for name, digest in files.items() if file_hash(folder / name) == digest]
    for name in names:
        # A manifest that somebody changed must not lead out of the two folders.
        if (folder / name).is_file() and ".." not in Path(name).parts and not Path(name).is_absolute():
            make_folder((scratch / name).parent)
            shutil.copyfile(folder / name, scratch / name)


def _present(folder: Path, results: Iterable[str]) -> Iterator[Path]:
    """What lies in a folder under the name of a result."""
    for pattern in (*_RESULTS, *results):
        yield from sorted(path for path in folder.glob(pattern) if path.exists())


def _read_made_from(folder: Path, first_stage: str) -> dict[str, Any]:
    """What a run in a folder was made from; of one that left no record what its manifests say."""
    if known := _json_of(folder / MADE_FROM):
        return known
    inputs = _json_of(folder / _MANIFESTS / f"{first_stage}.json").get("inputs", {})
    others = [_json_of(path).get("inputs", {}) for path in sorted((folder / _MANIFESTS).glob("*.json"))]
    # A stage without parents has looked at other images: those of test.
    images = [one.get("images") for one in others if "parents" in one]
    known = {
        "weights": inputs.get("weights"),
        "training": inputs.get("recipe"),
        "images": next(filter(None, images), None),
    }
    return {name: value for name, value in known.items() if value is not None}


def _differences(known: Mapping[str, Any], now: Mapping[str, Any]) -> Iterator[str]:
    """In words, what is on record and differs."""
    for name, value in now.items():
        before = known.get(name, value)
        if isinstance(value, dict) and isinstance(before, dict):
            for field in value:
                if before.get(field, value[field]) != value[field]:
                    yield f"{field} (there {before[field]}, now {value[field]})"
        elif before != value:
            yield _WORDS.get(name) or f"{name} (there {before}, now {value})"
    if "source" not in known and set(known) & {"weights", "training"} - set(now):
        yield _WORDS["source"]


def _json_of(path: Path) -> dict[str, Any]:
    """A JSON object, or nothing where there is none or a kill left half of one."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}
