"""Look at a data set, split it, decode it once, or download one; the first argument says which.

    cxr_data check --dataset=kermany --data_dir=chest_xray
    cxr_data split --dataset=csv --data_dir=images --test_fraction=0.2 --output_file=split.csv
    cxr_data cache --dataset=kermany --data_dir=chest_xray --cache_dir=cache --size=224
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
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from absl import flags

from cxr_compress.cli import data_cache, data_fetch
from cxr_compress.cli.app import (
    EXIT_OK,
    EXIT_SOME_INPUTS_BAD,
    EXIT_WRONG_INPUT,
    DefineFlags,
    Run,
    UsageError,
    print_error,
    run_command,
)
from cxr_compress.cli.data_cache import chosen_set, define_dataset, load
from cxr_compress.cli.output import Output, check_outputs, define_overwrite_flag, write_results
from cxr_compress.cli.progress import Meter
from cxr_compress.data.checks import count_images, examine, is_serious
from cxr_compress.data.dataset import Dataset, Problem, ProblemKind, check_dataset
from cxr_compress.data.readers.base import COMMON_OPTIONS, DATASETS, Missing, read_dataset
from cxr_compress.data.readers.csv_table import table_bytes
from cxr_compress.data.splits import divide, join_splits
from cxr_compress.files import write_bytes, write_text

NAME = "cxr_data"
_COLUMNS = ("split", "finding", "images", "patients", "positives", "unknown")
_NAMED = 10  # of the images of a problem that a table shows; JSON has all
# With these no number that is measured on the set means anything.
_UNUSABLE = frozenset({ProblemKind.LEAKAGE, ProblemKind.EMPTY_SPLIT})


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; `argv` without the program name."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    verb = next((argument for argument in arguments if not argument.startswith("-")), "")
    doc, define_own, run = _commands().get(verb, (_help_with_datasets(), _define_split, _refuse))

    def define_flags(values: flags.FlagValues) -> None:
        # Only those of the verb: cache and fetch both have a --size, each of its own kind.
        define_dataset(values)
        define_own(values)

    return run_command(NAME, doc, define_flags, lambda values, rest: run(values, rest[1:]), arguments)


def _commands() -> dict[str, tuple[str | None, DefineFlags, Run]]:
    """Verb -> help, flags, work."""
    return {
        "check": (_help_with_datasets(), _define_nothing, _check),
        "split": (_help_with_datasets(), _define_split, _split),
        "cache": (data_cache.__doc__, data_cache.define_flags, data_cache.run),
        "fetch": (data_fetch.__doc__, data_fetch.define_flags, data_fetch.run),
    }


def _help_with_datasets() -> str:
    """The help of this command, with the readers that are registered now, a plug-in's too."""
    lines = [f"    {name}: {text}" for name, text in COMMON_OPTIONS.items()]
    for name, reader in DATASETS.items():
        own = {option: text for option, text in reader.options.items() if option not in COMMON_OPTIONS}
        lines += [f"  {name}: {reader.help}", *(f"    {option}: {text}" for option, text in own.items())]
    wrapped = (textwrap.fill(line, 120, subsequent_indent=" " * 8) for line in lines)
    return "\n".join([(__doc__ or "").rstrip(), *wrapped, ""])


def _define_nothing(values: flags.FlagValues) -> None:
    """What `check` needs beside the set."""


def _define_split(values: flags.FlagValues) -> None:
    """What `split` needs beside the set."""
    flags.DEFINE_string("output_file", None, "split: the table to write.", flag_values=values)
    text = (
        "split: divide all images anew, with this share of the patients in test; without it the set's own test stays."
    )
    flags.DEFINE_float("test_fraction", None, text, flag_values=values)
    define_overwrite_flag(values)


def _refuse(values: flags.FlagValues, arguments: list[str]) -> int:
    """No verb, or none that is known."""
    raise UsageError("expected check, split, cache or fetch as the first argument")


def _check(values: flags.FlagValues, arguments: list[str]) -> int:
    """Report all that is wrong with a set."""
    _expect_flags_only(arguments)
    missing = Missing.DROP if values.allow_missing else Missing.KEEP
    dataset = read_dataset(**chosen_set(values), missing=missing)
    problems = examine(dataset, progress=Meter(NAME).counter("looked at", "images"))
    _print_check(values.format, dataset, problems)
    kinds = {problem.kind for problem in problems if is_serious(problem)}
    if kinds & _UNUSABLE:
        return EXIT_WRONG_INPUT
    return EXIT_SOME_INPUTS_BAD if kinds else EXIT_OK


def _print_check(form: str, dataset: Dataset, problems: list[Problem]) -> None:
    """What was found, then the counts; as CSV the counts alone, with what was found on stderr."""
    if form == "table":
        sys.stdout.write("".join(f"{line}\n" for line in (*dataset.notes, *_problem_lines(problems), "")))
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
    _write(form, dataset, document)


def _problem_lines(problems: list[Problem]) -> list[str]:
    """One line a problem, and some of the images under it."""
    lines = [] if problems else ["no problem found"]
    for problem in problems:
        lines.append(f"{'PROBLEM' if is_serious(problem) else 'note'}: {problem.kind.value}: {problem.text}")
        lines += [f"    {name}" for name in problem.names[:_NAMED]]
        if len(problem.names) > _NAMED:
            lines.append(f"    and {len(problem.names) - _NAMED} more; --format=json lists all")
    return lines


def _split(values: flags.FlagValues, arguments: list[str]) -> int:
    """Write a set's splits as a table."""
    _expect_flags_only(arguments)
    if not values.output_file:
        raise UsageError("--output_file is missing: the table to write")
    where = Path(values.output_file)
    for_data = chosen_set(values)
    inputs = [for_data["data_dir"], *for_data["options"].values()]
    # Of the hash an earlier call is as good a witness as of the table that it belongs to.
    digest_file = where.with_name(f"{where.name}.sha256")
    outputs = [
        Output("output_file", where, ".csv", _table_before),
        Output("output_file", digest_file, ".sha256", lambda _: _table_before(where)),
    ]
    check_outputs(NAME, outputs, inputs=inputs, overwrite=values.overwrite)
    dataset = load(values) if values.test_fraction is None else _divided(values)
    root = Path(values.data_dir)
    content = table_bytes(dataset, root if root.is_dir() else root.parent)
    digest = hashlib.sha256(content).hexdigest()
    write_bytes(where, content)
    write_text(digest_file, _digest_line(content, where))
    if values.format == "table":
        sys.stdout.write("".join(f"{line}\n" for line in (*dataset.notes, f"sha256 {digest}  {where}", "")))
    _write(values.format, dataset, {**_document(dataset), "file": str(where), "sha256": digest})
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
    found = read_dataset(**chosen_set(values), missing=missing)
    whole = join_splits(found.splits, "all")
    train, dev, test = divide(
        whole, dev_fraction=values.dev_fraction, test_fraction=values.test_fraction, seed=values.seed
    )
    return check_dataset(replace(found, train=train, dev=dev, test=test))


def _expect_flags_only(arguments: list[str]) -> None:
    if arguments:
        raise UsageError(f"expected flags only after the verb, got {arguments[0]!r}")


def _document(dataset: Dataset) -> dict[str, Any]:
    """What JSON says of every set."""
    images = Counter({split.name: len(split) for split in dataset.splits})
    return {
        "dataset": dataset.name,
        "attribution": dataset.attribution,
        "notes": list(dataset.notes),
        "patient_key": dataset.patient_key,
        "images": dict(images),
        "counts": [asdict(count) for count in count_images(dataset)],
    }


def _write(form: str, dataset: Dataset, document: dict[str, Any]) -> None:
    """The counts as rows."""
    rows = [[entry[column] for column in _COLUMNS] for entry in document["counts"]]
    write_results(form, document=document, headers=_COLUMNS, rows=rows)
