"""Whose an output folder is: a run goes on in its own, and replaces nothing in that of another.

A later stage may change from call to call: that is how a recipe is tried out. What the run starts from may not: the
data set, and the original model or the training that makes it. Both are kept in made_from.json.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from cxr_compress.errors import CompressionError
from cxr_compress.files import make_folder, write_text
from cxr_compress.pipeline.store import file_hash
from cxr_compress.recipe import Recipe

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
    known = _read(folder, first_stage)
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
        manifest = _load(folder / _MANIFESTS / f"{stage}.json")
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


def _read(folder: Path, first_stage: str) -> dict[str, Any]:
    """What a run in a folder was made from; of one that left no record what its manifests say."""
    if known := _load(folder / MADE_FROM):
        return known
    inputs = _load(folder / _MANIFESTS / f"{first_stage}.json").get("inputs", {})
    others = [_load(path).get("inputs", {}) for path in sorted((folder / _MANIFESTS).glob("*.json"))]
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


def _load(path: Path) -> dict[str, Any]:
    """A JSON object, or nothing where there is none or a kill left half of one."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}
