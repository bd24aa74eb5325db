r"""Look at a data set, split it, decode it once, or download one; the first argument says which.

    cxr_data check --dataset=kermany --data_dir=chest_xray
    cxr_data split --dataset=csv --data_dir=images --test_fraction=0.2 --output_file=split.csv
    cxr_data cache --dataset=kermany --data_dir=chest_xray --cache_dir=cache --input_size=224
    cxr_data fetch --dataset=pneumoniamnist --size=64 --output_dir=medmnist

check reads and decodes every image, and reports everything at once: images, patients, positive and unknown labels of
each finding in each split; patients in two splits; missing and corrupt files; the same file, or the same image saved
anew, in two splits or within one. It ends with 0 if all is well, 1 with bad or doubled images or a finding with one
class, and 2 with patient leakage or a set that cannot be read.

split writes a table of the splits that --dataset=csv reads again (--data_dir for the images,
--options=table=split.csv), and its SHA-256 beside it. A set's own test split stays; with --test_fraction all images are
divided anew: by patient, stratified by each patient's rarest finding, the same for a seed on every machine.

cxr_data cache --help and cxr_data fetch --help show the flags of those two.

Data sets, and what --options=name=value,... takes for each:
"""

from __future__ import annotations

import hashlib
import sys
import textwrap
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from absl import flags

from cxr_compress.cli.app import (
    EXIT_OK,
    EXIT_SOME_INPUTS_BAD,
    EXIT_WRONG_INPUT,
    DefineFlags,
    UsageError,
    print_error,
    printable,
    reader_options,
    run_command,
)
from cxr_compress.cli.output import Output, check_outputs, define_overwrite_flag, write_results
from cxr_compress.cli.progress import Progress, show_progress
from cxr_compress.data.cache import build_cache, verify_cache
from cxr_compress.data.checks import count_images, examine, is_serious
from cxr_compress.data.dataset import Dataset, Problem, ProblemKind, check_dataset
from cxr_compress.data.fetch import ATTRIBUTION, FETCHABLE, SIZES, fetch, medmnist_archive
from cxr_compress.data.readers.base import COMMON_OPTIONS, DATASETS, Missing, load_dataset, read_dataset
from cxr_compress.data.readers.csv_table import names_classes, table_bytes
from cxr_compress.data.splits import Split, divide, join_splits
from cxr_compress.device.preprocess import PreprocessSpec
from cxr_compress.files import check_writable, write_bytes, write_text

NAME = "cxr_data"

CACHE_HELP = """Decode a data set once, into files that training reads like memory: cxr_data cache.

    cxr_data cache --dataset=kermany --data_dir=chest_xray --cache_dir=cache --input_size=224,112
    cxr_data cache --dataset=kermany --data_dir=chest_xray --cache_dir=cache --input_size=224 --verify

One file per split and size, 50 KB an image at 224 px (112,120 images: 5.6 GB). Ctrl-C, a crash or a full disk lose a
few seconds of work: the same command goes on. Caches that are complete and whose images have not changed are left
alone; --verify then reads every byte of them, and of the images, and compares checksums.
"""
FETCH_HELP = """Download a MedMNIST+ archive: cxr_data fetch.

    cxr_data fetch --dataset=pneumoniamnist --size=64 --output_dir=medmnist
    cxr_data fetch --dataset=chestmnist --size=224 --output_dir=medmnist --mirror=https://mirror.example/medmnist

An interrupted download goes on where it ended. The file gets its name when its checksum is the published one; a file
that is there already is checked and left alone. Where no network is, the one line of the error says which file to
bring, and where to put it.
"""

_COUNT_COLUMNS = ("split", "finding", "images", "patients", "positives", "unknown")
_CACHE_COLUMNS = ("split", "size", "images", "decoded", "bytes", "seconds", "images_per_second", "sha256")
_FETCH_COLUMNS = ("file", "bytes", "md5", "seconds")
_SHOWN = 10  # images of a problem that a table shows; JSON has all
# With these no number that is measured on the set means anything.
_UNUSABLE = frozenset({ProblemKind.LEAKAGE, ProblemKind.EMPTY_SPLIT})


@dataclass(frozen=True)
class _Verb:
    """What the first argument chooses.

    Attributes:
        help: gives the text above the flags.
        define_flags: defines the flags that it has besides those of the data set.
        run: does the work and returns the exit code.
    """

    help: Callable[[], str]
    define_flags: DefineFlags
    run: Callable[[flags.FlagValues], int]


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; `argv` without the program name."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    name = next((argument for argument in arguments if not argument.startswith("-")), "")
    verb = _VERBS.get(name, _Verb(_help_with_datasets, _define_split_flags, _refuse))

    def define_flags(values: flags.FlagValues) -> None:
        # Those of this verb alone: two verbs may have flags of one name, each of its own kind.
        _define_dataset_flags(values)
        verb.define_flags(values)

    def run(values: flags.FlagValues, rest: list[str]) -> int:
        if rest[1:]:
            raise UsageError(f"expected flags only after {name}, got {rest[1]!r}")
        return verb.run(values)

    return run_command(NAME, verb.help(), define_flags, run, arguments)


def _help_with_datasets() -> str:
    """The help of this command, with the readers that are registered now, a plug-in's too."""
    lines = [f"    {name}: {text}" for name, text in COMMON_OPTIONS.items()]
    for name, reader in DATASETS.items():
        own = {option: text for option, text in reader.options.items() if option not in COMMON_OPTIONS}
        lines += [f"  {name}: {reader.help}", *(f"    {option}: {text}" for option, text in own.items())]
    wrapped = (textwrap.fill(line, 120, subsequent_indent=" " * 8) for line in lines)
    return "\n".join([(__doc__ or "").rstrip(), *wrapped, ""])


def _define_dataset_flags(values: flags.FlagValues) -> None:
    flags.DEFINE_string("dataset", None, f"Name of the data set: {', '.join(DATASETS)}.", flag_values=values)
    flags.DEFINE_string("data_dir", None, "Folder or file of the data set.", flag_values=values)
    flags.DEFINE_float("dev_fraction", 0.1, "Share of the training patients that becomes dev.", flag_values=values)
    flags.DEFINE_integer("seed", 0, "Seed of the choice of patients.", lower_bound=0, flag_values=values)
    text = "Go on with a part of the images that the data set's list names."
    flags.DEFINE_boolean("allow_missing", False, text, flag_values=values)
    flags.DEFINE_list("options", [], "Options of the data set's reader, as name=value,...", flag_values=values)


def _chosen(values: flags.FlagValues) -> dict[str, Any]:
    """The flags that choose a data set, as arguments."""
    for name in ("dataset", "data_dir"):
        if not values[name].value:
            raise UsageError(f"--{name} is missing")
    return {
        "name": values.dataset,
        "data_dir": values.data_dir,
        "dev_fraction": values.dev_fraction,
        "seed": values.seed,
        "options": reader_options(values.options),
    }


def _load(values: flags.FlagValues) -> Dataset:
    return load_dataset(**_chosen(values), allow_missing=values.allow_missing)


def _refuse(values: flags.FlagValues) -> int:
    raise UsageError(f"expected {', '.join([*_VERBS][:-1])} or {[*_VERBS][-1]} as the first argument")


def _define_no_flags(values: flags.FlagValues) -> None:
    """For a verb that needs the data set alone."""


def _check(values: flags.FlagValues) -> int:
    """Report all that is wrong with a set."""
    missing = Missing.DROP if values.allow_missing else Missing.KEEP
    dataset = read_dataset(**_chosen(values), missing=missing)
    with show_progress(NAME) as progress:
        problems = examine(dataset, progress=progress.counter("looking at files"))
    _print_check(values.format, dataset, problems)
    kinds = {problem.kind for problem in problems if is_serious(problem)}
    if kinds & _UNUSABLE:
        return EXIT_WRONG_INPUT
    return EXIT_SOME_INPUTS_BAD if kinds else EXIT_OK


def _print_check(form: str, dataset: Dataset, problems: list[Problem]) -> None:
    """The problems, then the counts; as CSV the counts alone, with the problems on stderr."""
    if form == "table":
        _print_lines(*dataset.notes, *_problem_lines(problems))
    elif form == "csv":
        for problem in problems:
            print_error(NAME, problem.text)
    document = {
        **_document(dataset),
        "serious": sum(map(is_serious, problems)),
        "problems": [
            {**asdict(problem), "kind": problem.kind.value, "serious": is_serious(problem)} for problem in problems
        ],
    }
    _write_counts(form, document)


def _problem_lines(problems: list[Problem]) -> list[str]:
    """One line a problem, and some of the images under it."""
    lines = [] if problems else ["no problem found"]
    for problem in problems:
        lines.append(f"{'PROBLEM' if is_serious(problem) else 'note'}: {problem.kind.value}: {problem.text}")
        lines += [f"    {name}" for name in problem.names[:_SHOWN]]
        if len(problem.names) > _SHOWN:
            lines.append(f"    and {len(problem.names) - _SHOWN} more; --format=json lists all")
    return lines


def _define_split_flags(values: flags.FlagValues) -> None:
    flags.DEFINE_string("output_file", None, "split: the table to write.", flag_values=values)
    text = "split: divide all images anew, with this share of the patients in test; unless given, the set's test stays."
    flags.DEFINE_float("test_fraction", None, text, flag_values=values)
    define_overwrite_flag(values)


def _split(values: flags.FlagValues) -> int:
    """Write a set's splits as a table."""
    if not values.output_file:
        raise UsageError("--output_file is missing: the table to write")
    where = Path(values.output_file)
    chosen = _chosen(values)
    inputs = [chosen["data_dir"], *chosen["options"].values()]
    # A digest was written by an earlier call if the table that it belongs to was.
    digest_file = where.with_name(f"{where.name}.sha256")
    outputs = [
        Output("output_file", where, ".csv", _table_before),
        Output("output_file", digest_file, ".sha256", lambda _: _table_before(where)),
    ]
    check_outputs(NAME, outputs, inputs=inputs, overwrite=values.overwrite)
    dataset = _load(values) if values.test_fraction is None else _divided(values)
    root = Path(values.data_dir)
    content = table_bytes(dataset, root if root.is_dir() else root.parent)
    digest = hashlib.sha256(content).hexdigest()
    write_bytes(where, content)
    write_text(digest_file, _digest_line(content, where))
    if values.format == "table":
        options = [f"table={where}", *(["label_column=label"] if names_classes(dataset) else [])]
        options += ["color=rgb"] if dataset.color == "rgb" else []
        again = f"--dataset=csv --options={','.join(options)} reads it"
        _print_lines(*dataset.notes, f"sha256 {digest}  {where}", again)
    _write_counts(values.format, {**_document(dataset), "file": str(where), "sha256": digest})
    return EXIT_OK


def _table_before(path: Path) -> str:
    """Whether an earlier call wrote a table: its SHA-256 lies beside it, and nobody changed it since."""
    digest = path.with_name(f"{path.name}.sha256")
    try:
        known = digest.read_text(encoding="utf-8") == _digest_line(path.read_bytes(), path)
    except (OSError, UnicodeDecodeError):
        return ""
    return "a table that cxr_data split wrote" if known else ""


def _digest_line(content: bytes, path: Path) -> str:
    """What stands beside a table, as sha256sum writes it."""
    return f"{hashlib.sha256(content).hexdigest()}  {path.name}\n"


def _divided(values: flags.FlagValues) -> Dataset:
    """All images of the set, divided anew; leakage between its own splits does not matter then."""
    missing = Missing.DROP if values.allow_missing else Missing.REFUSE
    dataset = read_dataset(**_chosen(values), missing=missing)
    whole = join_splits(dataset.splits, "all")
    train, dev, test = divide(
        whole, dev_fraction=values.dev_fraction, test_fraction=values.test_fraction, seed=values.seed
    )
    return check_dataset(replace(dataset, train=train, dev=dev, test=test))


def _document(dataset: Dataset) -> dict[str, Any]:
    """What JSON says of every set."""
    return {
        "dataset": dataset.name,
        "attribution": dataset.attribution,
        "notes": list(dataset.notes),
        "patient_key": dataset.patient_key,
        "images": {split.name: len(split) for split in dataset.splits},
        "counts": [asdict(count) for count in count_images(dataset)],
    }


def _print_lines(*lines: str) -> None:
    """Lines above a table, and an empty one; file names in them may hold anything."""
    sys.stdout.write("".join(f"{printable(line)}\n" for line in (*lines, "")))


def _write_counts(form: str, document: dict[str, Any]) -> None:
    rows = [[entry[column] for column in _COUNT_COLUMNS] for entry in document["counts"]]
    write_results(form, document=document, headers=_COUNT_COLUMNS, rows=rows)


def _define_cache_flags(values: flags.FlagValues) -> None:
    flags.DEFINE_string("cache_dir", None, "Where the caches go; may be shared by data sets.", flag_values=values)
    text = "Heights and widths of the models' input in pixels; one cache each."
    flags.DEFINE_list("input_size", ["224"], text, flag_values=values)
    text = "Keep three channels, as for skin; by default as the set is."
    flags.DEFINE_boolean("color", None, text, flag_values=values)
    flags.DEFINE_boolean("verify", False, "Also read and check all of the caches and images.", flag_values=values)


def _cache(values: flags.FlagValues) -> int:
    """Build what is missing, and print a row per split and size."""
    for name in ("dataset", "data_dir", "cache_dir"):
        if not getattr(values, name):
            raise UsageError(f"--{name} is missing")
    sizes = [_size(text) for text in values.input_size]
    if not sizes:
        raise UsageError("expected --input_size as at least one number of pixels")
    check_writable(values.cache_dir, to_be_made=True)
    dataset = _load(values)
    for note in dataset.notes:
        print_error(NAME, f"note: {note}")
    color = dataset.color if values.color is None else "rgb" if values.color else "gray"
    specs = [PreprocessSpec(size, size, color=color) for size in sizes]
    splits = [(split, spec) for spec in specs for split in dataset.splits if len(split)]
    try:
        with show_progress(NAME) as progress:
            rows = [_cache_split(split, spec, values, progress) for split, spec in splits]
    except KeyboardInterrupt as error:  # or one of its kind, which stays what it is
        error.args = ("what is done is kept; the same command goes on from there",)
        raise
    write_results(
        values.format,
        document={
            "dataset": dataset.name,
            "verified": values.verify,
            "caches": rows,
            "attribution": dataset.attribution,
        },
        headers=_CACHE_COLUMNS,
        rows=[[row[column] for column in _CACHE_COLUMNS] for row in rows],
    )
    return EXIT_OK


def _cache_split(split: Split, spec: PreprocessSpec, values: flags.FlagValues, progress: Progress) -> dict[str, Any]:
    what = f"{split.name} at {spec.height}x{spec.width}"
    started = time.perf_counter()
    entry = build_cache(split, spec, values.cache_dir, progress=progress.counter(f"caching {what}"))
    seconds = time.perf_counter() - started
    if values.verify:
        verify_cache(split, spec, values.cache_dir, progress=progress.counter(f"verifying {what}"))
    return {
        "split": split.name,
        "size": spec.height,
        "images": entry.images,
        "decoded": entry.decoded,
        "bytes": entry.bytes,
        "seconds": round(seconds, 2),
        "images_per_second": round(entry.decoded / seconds, 1) if entry.decoded else None,
        "sha256": entry.sha256,
        "path": str(entry.path),
    }


def _size(text: str) -> int:
    if not text.strip().isdigit() or not int(text):
        raise UsageError(f"expected --input_size as numbers of pixels such as 224,112; got {text!r}")
    return int(text)


def _define_fetch_flags(values: flags.FlagValues) -> None:
    flags.DEFINE_enum(
        "size", str(SIZES[0]), [str(size) for size in SIZES], "Pixels of the images in the archive.", flag_values=values
    )
    flags.DEFINE_string("output_dir", None, "Where the archive goes.", flag_values=values)
    flags.DEFINE_string(
        "mirror", None, "Address of a folder with a copy of the archive, instead of Zenodo.", flag_values=values
    )


def _fetch(values: flags.FlagValues) -> int:
    """Download, check, and print what lies where."""
    if values.dataset not in FETCHABLE:
        raise UsageError(f"expected --dataset to be one of {', '.join(FETCHABLE)}, got {values.dataset!r}")
    if not values.output_dir:
        raise UsageError("--output_dir is missing: the folder for the archive")
    archive = medmnist_archive(values.dataset, int(values.size))
    started = time.perf_counter()
    try:
        with show_progress(NAME) as progress:
            count = progress.counter(f"downloading {archive.file}", "bytes")
            path = fetch(archive, values.output_dir, mirror=values.mirror, progress=count)
    except KeyboardInterrupt as error:  # or one of its kind, which stays what it is
        error.args = ("what has arrived is kept; the same command goes on from there",)
        raise
    row: dict[str, Any] = {
        "file": str(path),
        "bytes": path.stat().st_size,
        "md5": archive.md5,
        "seconds": round(time.perf_counter() - started, 1),
    }
    write_results(
        values.format,
        document={**row, "attribution": ATTRIBUTION},
        headers=_FETCH_COLUMNS,
        rows=[[row[column] for column in _FETCH_COLUMNS]],
    )
    return EXIT_OK


_VERBS = {
    "check": _Verb(_help_with_datasets, _define_no_flags, _check),
    "split": _Verb(_help_with_datasets, _define_split_flags, _split),
    "cache": _Verb(lambda: CACHE_HELP, _define_cache_flags, _cache),
    "fetch": _Verb(lambda: FETCH_HELP, _define_fetch_flags, _fetch),
}
