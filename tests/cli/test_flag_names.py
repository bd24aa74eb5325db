"""Messages name flags that exist in the command at hand, or say in which command they do."""

from __future__ import annotations

import ast
import importlib
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from absl import flags

import cxr_compress
from cxr_compress.cli import data
from cxr_compress.cli.app import FLAG_OWNERS, name_owners, run_command
from cxr_compress.cli.compress import define_flags as define_compress
from cxr_compress.cli.help import SHARED_FLAGS
from cxr_compress.errors import DataError

PACKAGE = Path(cxr_compress.__file__).parent
_NAMED = re.compile(r"(?<![\w-])--(no)?([a-z][a-z_0-9]*)")


def flags_of(*defines) -> set[str]:
    values = flags.FlagValues()
    for define in defines:
        define(values)
    return {*values, *SHARED_FLAGS, "flagfile", "help", "helpfull", "version"}


@pytest.fixture(scope="module")
def known() -> dict[str, set[str]]:
    """Command -> its flags; those of every verb of cxr_data together."""
    names = ("benchmark", "compare", "convert", "evaluate", "import_weights", "inspect", "predict", "train", "verify")
    modules = {name: importlib.import_module(f"cxr_compress.cli.{name}") for name in names}
    found = {f"cxr_{name}": flags_of(module._define_flags) for name, module in modules.items()}
    found["cxr_compress"] = flags_of(define_compress)
    verbs = data._VERBS.values()
    found["cxr_data"] = set().union(*(flags_of(data._define_dataset_flags, verb.define_flags) for verb in verbs))
    return found


def messages(path: Path) -> Iterator[tuple[int, str]]:
    """Every text in a module that is no docstring; the parts of an f-string as one."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    documented = ast.Module | ast.ClassDef | ast.FunctionDef
    docs = {
        id(node.body[0].value) for node in ast.walk(tree) if isinstance(node, documented) and ast.get_docstring(node)
    }
    parts = {id(value) for node in ast.walk(tree) if isinstance(node, ast.JoinedStr) for value in node.values}
    for node in ast.walk(tree):
        if isinstance(node, ast.JoinedStr):
            texts = (str(value.value) if isinstance(value, ast.Constant) else "{}" for value in node.values)
            yield node.lineno, "".join(texts)
        elif isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in docs | parts:
            yield node.lineno, node.value


def named(text: str, all_flags: set[str]) -> set[str]:
    """The flags that a text names; --noflag is the flag."""
    return {no + name if no + name in all_flags else name for no, name in _NAMED.findall(text)}


def test_every_flag_that_a_message_names_exists(known: dict[str, set[str]]) -> None:
    everything = set().union(*known.values())
    wrong = [
        f"{path.relative_to(PACKAGE)}:{line}: --{flag}"
        for path in sorted(PACKAGE.rglob("*.py"))
        for line, text in messages(path)
        for flag in named(text, everything) - everything
    ]
    assert wrong == []


def test_shared_code_names_the_command_of_a_flag_or_the_list_of_owners_does(known: dict[str, set[str]]) -> None:
    everything = set().union(*known.values())
    wrong = []
    for path in sorted(PACKAGE.rglob("*.py")):
        room = path.relative_to(PACKAGE).parts[0]
        if room == "cli":  # a command's own module; what several share is named for the flags that it defines
            continue
        for line, text in messages(path):
            for flag in named(text, everything):
                of_compress = room in ("pipeline", "recipe", "structured") and flag in known["cxr_compress"]
                said = [command for command in known if command in text and flag in known[command]]
                if not (of_compress or said or flag in FLAG_OWNERS):
                    wrong.append(f"{path.relative_to(PACKAGE)}:{line}: --{flag}")
    assert wrong == []
    assert [flag for flag, owner in FLAG_OWNERS.items() if flag not in known[owner]] == []


@pytest.mark.parametrize(
    ("text", "own", "expected"),
    [
        ("choose one with --frame=1 to 2", {"frame"}, ""),
        ("choose one with --frame=1 to 2", {"model"}, " (--frame is a flag of cxr_predict)"),
        (
            "--frame or --frame, else --window",
            (),
            " (--frame is a flag of cxr_predict) (--window is a flag of cxr_predict)",
        ),
        ("make one with cxr_convert --head=logits+cam", (), ""),
        ("--nothing that is known, a--gate", (), ""),
    ],
)
def test_name_owners_adds_the_command_only_where_the_flag_is_not_at_hand(text, own, expected) -> None:
    assert name_owners(text, own) == text + expected


def test_a_command_without_the_flag_says_whose_it_is(capsys: pytest.CaptureFixture[str]) -> None:
    def fail(values: flags.FlagValues, arguments: list[str]) -> int:
        raise DataError("holds 2 frames; choose one with --frame=1 to 2")

    assert run_command("cxr_x", "", lambda values: None, fail, []) == 2
    line = "cxr_x: holds 2 frames; choose one with --frame=1 to 2 (--frame is a flag of cxr_predict)\n"
    assert capsys.readouterr().err == line
