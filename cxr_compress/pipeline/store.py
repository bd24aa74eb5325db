"""Stages on disk: what a stage made, from what, and whether it still holds.

A stage's key is the hash of everything that decides its result: its part of the recipe and the hashes of what it
reads. A stage whose manifest carries the same key and whose files are still the ones it wrote is not run again, so a
killed run goes on where it was and a changed recipe redoes exactly what depends on the change.
"""

from __future__ import annotations

import hashlib
import json
import platform
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import Any

from cxr_compress import __version__
from cxr_compress.device.atomic import make_folder, write_text
from cxr_compress.pipeline.memory import peak_bytes, reset_peak

News = Callable[[str], None]


@dataclass(frozen=True)
class Artefacts:
    """The files of a finished stage.

    Attributes:
        paths: by name.
        sha256: by name.
    """

    paths: dict[str, Path]
    sha256: dict[str, str]

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

    def __init__(self, folder: Path, news: News, threads: int = 0) -> None:
        self.folder, self.threads = folder, threads
        self._news = news

    def run(
        self,
        stage: str,
        inputs: Mapping[str, Any],
        files: Sequence[str],
        make: Callable[[Path], Mapping[str, Any] | None],
    ) -> Artefacts:
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
            self._news(f"{stage}: done before, kept")
            return Artefacts(paths, _read(manifest)["files"])
        for folder in {manifest.parent, *(path.parent for path in paths.values())}:
            make_folder(folder)
        self._news(f"{stage}: started")
        started = time.monotonic()
        reset_peak()
        work = self.folder / "work" / f"{stage}-{key[:12]}"
        facts = make(work) or {}
        hashes = {name: _sha256(path) for name, path in paths.items()}
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
        self._news(f"{stage}: finished in {seconds:.0f} s")
        return Artefacts(paths, hashes)

    def stands(self, stage: str, inputs: Mapping[str, Any], files: Sequence[str]) -> bool:
        """Whether a stage was made from just these inputs, and its files are still what it wrote."""
        known = self.manifest(stage)
        return known.get("key") == _key(stage, inputs) and all(
            _sha256(self.folder / name) == known["files"].get(name) for name in files
        )

    def facts(self, stage: str) -> dict[str, Any]:
        """What a finished stage noted about itself."""
        return dict(self.manifest(stage).get("facts", {}))

    def manifest(self, stage: str) -> dict[str, Any]:
        """All that is on record of a finished stage; nothing of one that is not."""
        return _read(self.folder / "manifests" / f"{stage}.json")


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
    try:
        record = json.loads(manifest.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return record if isinstance(record, dict) and isinstance(record.get("files"), dict) else {}


def _sha256(path: Path) -> str:
    """The hash of a file; empty where there is none."""
    return hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else ""
