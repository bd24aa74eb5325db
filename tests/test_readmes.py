"""What the three READMEs and CONTRIBUTING.md say is so: commands run, links lead somewhere, quoted messages exist.

Commands of a README run one after the other in one folder that starts with what its reader has (an X-ray, a small data
set, a model) and nothing else, so a command that needs a file finds it only if an earlier one made it. Long ones are
made short by more flags, or have their flags parsed by the command itself, with the same checks of their files.
"""

from __future__ import annotations

import ast
import configparser
import contextlib
import csv
import functools
import hashlib
import importlib
import io
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import traceback
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import REPOSITORY

READMES = ("README.md", "experiments/README.md", "tflite_models/README.md")
DOCUMENTS = (*READMES, "CONTRIBUTING.md")
MOST_BYTES = 10_000
SHIPPED = REPOSITORY / "tflite_models"
EXPERIMENTS = REPOSITORY / "experiments"

# What the reader of a README has before its first command, beside what `make_what_a_reader_has` makes: empty files, for
# commands whose flags alone are parsed.
NAMED_ALONE = ("kermany224", "nih", "model.pth.tar", "skin", "FILE.whl")
# Messages of other programs, which the package does not hold.
NOT_OURS = ("error: externally-managed-environment", "Could not locate class 'Functional'")

# A command -> how it is run here; the first pattern that is found in it counts. None: its flags are parsed, and what it
# would write is put there empty, or as the file named below.
HOW: tuple[tuple[str, list[str] | None], ...] = (
    (r"--dry_run", ["--qat=never"]),
    (r"^cxr_(train|import_weights)", None),
    (r"^cxr_compress .*--(search|recipe|model)\b", None),
    (r"^cxr_compress .*--latency_table", ["--dry_run"]),
    (r"^cxr_compress .*--dataset=images", ["--force"]),
    (r"^cxr_compress .*--probe_pack", ["--force"]),
    (r"^cxr_compress", ["--force", "--recovery_epochs=1", "--sparsity_epochs=2", "--qat=never"]),
    (r"^cxr_benchmark .*--layers", ["--runs=5"]),
    (r"^cxr_", []),
)
STAND_INS = {
    name: SHIPPED / "tiny_chexnet_kermany_m50_w50_int8.tflite"
    for name in ("run/tiny_chexnet_m50_w50_int8.tflite", "skin_run/model_m50_w50_int8.tflite")
}
# Here the networks are large and the data are not there: flags alone.
ONLY_FLAGS = ("experiments/README.md", "CONTRIBUTING.md")
_INPUT_FLAGS = (
    *("keras_model_file", "saved_model_dir", "model", "models", "input_file", "data_dir", "calibration_data", "recipe"),
    *("latency_table", "layers", "plan", "public_key", "sign_key", "results", "tflite_python"),
)
_OUTPUT_FLAGS = ("output_file", "probe_pack", "plot")
_ARCHITECTURES = ("chexnet", "tiny_chexnet")


@dataclass(frozen=True)
class Command:
    """A command of a document: where it stands, and its words."""

    line: int
    argv: tuple[str, ...]

    @property
    def text(self) -> str:
        return shlex.join(self.argv)

    def flag(self, name: str) -> str | None:
        """The value of --name=value."""
        found = [word.partition("=")[2] for word in self.argv if word.startswith(f"--{name}=")]
        return found[0] if found else None


def read(document: str) -> str:
    return (REPOSITORY / document).read_text(encoding="utf-8")


def prose_and_code(document: str) -> Iterator[tuple[int, str, str]]:
    """(line number, kind, text) of every line; kind is "text", "indented" or the language of a fence."""
    fence = ""
    for number, line in enumerate(read(document).splitlines(), 1):
        if line.startswith("```"):
            fence = "" if fence else line[3:] or "text"
            continue
        yield number, fence or ("indented" if line.startswith("    ") else "prose"), line


def commands(document: str) -> list[Command]:
    """Every command of a document's blocks, and those with flags in its text and tables; `a && b` are two."""
    found = []
    for number, kind, line in prose_and_code(document):
        codes = [line] if kind in ("indented", "sh") else []
        if kind == "prose":
            codes = re.findall(r"`((?:cxr_\w+|python3?|pip) [^`]*-[^`]*)`", line)
        found += [Command(number, words) for code in codes for words in _split(code)]
    return found


def _split(line: str) -> Iterator[tuple[str, ...]]:
    words: list[str] = []
    for word in [*shlex.split(line, comments=True), ";"]:
        if word not in ("&&", ";"):
            words.append(word)
        elif words:
            yield tuple(words)
            words = []


def ours(document: str) -> list[Command]:
    return [command for command in commands(document) if command.argv[0].startswith("cxr_")]


def run_all(document: str, folder: Path, *, python: str = "") -> list[str]:
    """Run a document's commands in one process and one folder; what went wrong, by line."""
    for name in ("experiments", "tflite_models"):
        (folder / name).symlink_to(REPOSITORY / name)
    steps = [_step(document, command) for command in ours(document)]
    steps += [{"argv": [], "python": python, "parsed": False, "needs": [], "leaves": []}] if python else []
    plan = {"given": document not in ONLY_FLAGS, "named_alone": [], "steps": steps}
    plan["named_alone"] = [*NAMED_ALONE, *(() if plan["given"] else ("mine.keras", "labels.csv", "chest_xray"))]
    file = folder / "plan.json"
    file.write_text(json.dumps(plan))
    done = subprocess.run(
        [sys.executable, "-c", "import sys; from tests.test_readmes import drive; drive(sys.argv[1])", str(file)],
        cwd=folder,
        env=os.environ | {"PYTHONPATH": str(REPOSITORY)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    wrong = []
    for command, step, result in zip([*ours(document), None], steps, json.loads(file.read_text()), strict=False):
        where = f"{document}:{command.line}: {command.text}" if command else f"{document}: its Python"
        if result["lacking"]:
            wrong.append(f"{where}\n  nothing has made {', '.join(result['lacking'])}")
        elif result["code"] != 0:
            wrong.append(f"{where}\n  as {step['argv']} ended with {result['code']}: {result['said']}")
    return wrong


def _step(document: str, command: Command) -> dict[str, object]:
    text = command.text
    more = None if document in ONLY_FLAGS else next(flags for pattern, flags in HOW if re.search(pattern, text))
    needs = [
        path
        for flag in _INPUT_FLAGS
        for path in (command.flag(flag) or "").split(",")
        if path and not (flag == "model" and path in _ARCHITECTURES)
    ]
    needs += [word for word in command.argv[1:] if re.search(r"\.(png|keras|tflite)$", word) and "=" not in word]
    leaves = [(value, None) for flag in _OUTPUT_FLAGS if more is None and (value := command.flag(flag))]
    folder = command.flag("output_dir")
    if more is None and folder:
        leaves += [(path, str(file)) for path, file in STAND_INS.items() if path.startswith(folder)]
        leaves += [(f"{folder}/model.keras", None)] if command.argv[0] == "cxr_train" else []
    argv = [*command.argv, *(more or [])]
    return {"argv": argv, "python": "", "parsed": more is None, "needs": needs, "leaves": leaves}


def drive(plan_file: str) -> None:
    """Run the steps of a plan in this folder and write what came of them over it; runs in a process of its own."""
    plan = json.loads(Path(plan_file).read_text())
    if plan["given"]:
        make_what_a_reader_has()
    for path in plan["named_alone"]:
        Path(path).touch()
    results = []
    for step in plan["steps"]:
        lacking = [path for path in step["needs"] if not Path(path).exists()]
        said = io.StringIO()
        code = None
        if not lacking:
            with contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
                try:
                    code = run_step(step)
                except BaseException:
                    traceback.print_exc()
        for path, source in step["leaves"]:
            leave(Path(path), source)
        results.append({"code": code, "lacking": lacking, "said": said.getvalue()[-1500:]})
    Path(plan_file).write_text(json.dumps(results))


def make_what_a_reader_has() -> None:
    """Make chest.png, images/, labels.csv, chest_xray/, mine.keras and saved/: drawn images and a tiny network."""
    import cv2

    from cxr_compress.data import write_phantom
    from cxr_compress.keras2 import keras

    write_phantom("drawn", n_train=160, n_test=60, size=64)
    Path("images").mkdir()
    table = ["path,split,patient_id,Pneumonia"]
    for row in csv.DictReader(Path("drawn/labels.csv").read_text().splitlines()):
        patient, number = int(row["patient_id"][len("phantom") :]), int(Path(row["path"]).stem[-2:])
        image = cv2.imread(f"drawn/{row['path']}", cv2.IMREAD_GRAYSCALE)
        ill = row["Opacity"] == "1"
        folder = Path("chest_xray", row["split"], "PNEUMONIA" if ill else "NORMAL")
        folder.mkdir(parents=True, exist_ok=True)
        name = f"person{patient}_bacteria_{number}.jpeg" if ill else f"NORMAL2-IM-{patient:04d}-{number:04d}.jpeg"
        cv2.imwrite(str(folder / name), image)
        if row["split"] == "train":
            cv2.imwrite(f"images/{Path(row['path']).name}", image)
        table.append(f"drawn/{row['path']},{row['split']},{row['patient_id']},{row['Opacity']}")
    Path("labels.csv").write_text("\n".join(table) + "\n")
    cv2.imwrite("chest.png", image)
    layers = keras.layers
    keras.utils.set_random_seed(0)
    pixels = keras.Input((32, 32, 3))
    x = layers.Conv2D(16, 3, strides=2, activation="relu")(pixels)
    x = layers.Conv2D(16, 3, activation="relu")(layers.BatchNormalization()(x))
    x = layers.Dense(1, activation="sigmoid")(layers.GlobalAveragePooling2D()(x))
    model = keras.Model(pixels, x)
    model.save("mine.keras")
    model.export("saved")


def run_step(step: Mapping[str, Any]) -> int:
    """Run one command, or with "parsed" its own parser alone; or some Python."""
    if step["python"]:
        exec(compile(step["python"], "README.md", "exec"), {})
        return 0
    main = importlib.import_module(f"cxr_compress.cli.{step['argv'][0].removeprefix('cxr_')}").main
    if not step["parsed"]:
        return int(main(step["argv"][1:]))
    with pytest.MonkeyPatch.context() as patch:
        for name, module in list(sys.modules.items()):
            run_command = getattr(module, "run_command", None)
            if name.startswith("cxr_compress.cli.") and run_command and run_command.__module__ != name:
                patch.setattr(module, "run_command", functools.partial(only_flags, run_command))
        return int(main(step["argv"][1:]))


def only_flags(
    run_command: Callable[..., int], name: str, doc: str, define: Any, run: Any, argv: Any = None, **options: Any
) -> int:
    """Let a command parse its flags, or refuse them, and do nothing."""
    return run_command(name, doc, define, lambda values, arguments: 0, argv, **options)


def leave(path: Path, source: str | None) -> None:
    """Put a file there, empty or a copy, where there is none."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if not path.exists():
        path.write_bytes(Path(source).read_bytes() if source else b"")


def test_readme_is_short():
    assert len(read("README.md").encode()) <= MOST_BYTES


def test_commands_and_python_of_the_readme_run_from_what_its_reader_has(tmp_path):
    python = "\n".join(line for _, kind, line in prose_and_code("README.md") if kind == "python")
    assert "convert(" in python
    assert len(ours("README.md")) > 12
    assert not run_all("README.md", tmp_path, python=python)
    assert (tmp_path / "run_mine" / "report.json").is_file()
    assert json.loads((tmp_path / "run_images" / "report.json").read_text())["facts"]["gate"]["kind"] == "agreement"


def test_commands_of_the_shipped_files_run(tmp_path):
    if not shutil.which("openssl"):
        pytest.skip("openssl is not installed: it makes the keys of signed files")
    pytest.importorskip("cryptography")
    for command in commands("tflite_models/README.md"):
        if command.argv[0] == "openssl":
            subprocess.run(command.argv, cwd=tmp_path, check=True, capture_output=True)
    assert not run_all("tflite_models/README.md", tmp_path)
    assert (tmp_path / "signed.tflite.sig").is_file()


@pytest.mark.parametrize("document", ONLY_FLAGS)
def test_long_commands_have_flags_and_files_that_exist(document, tmp_path):
    (tmp_path / "demo_run").mkdir()
    (tmp_path / "demo_run" / "base.keras").touch()  # of `make demo`
    assert not run_all(document, tmp_path)


def test_a_command_whose_flags_alone_are_parsed_still_refuses_what_it_does_not_have(capsys):
    step = {"python": "", "parsed": True, "argv": ["cxr_train", "--no_such_flag=1"]}
    assert run_step(step) == 2
    assert "no_such_flag" in capsys.readouterr().err
    assert run_step({**step, "argv": ["cxr_train", "--model=chexnet"]}) == 0


@pytest.mark.parametrize("document", DOCUMENTS)
def test_every_line_of_a_block_is_a_command_that_is_known(document):
    extras = configparser.ConfigParser()
    extras.read(REPOSITORY / "setup.cfg")
    targets = set(re.findall(r"^([a-z]+):", read("Makefile"), re.MULTILINE))
    scripts = dict(extras["options.entry_points"].items())["console_scripts"]
    for command in commands(document):
        first, where = command.argv[0], f"{document}:{command.line}: {command.text}"
        if first.startswith("cxr_"):
            assert f"\n{first} =" in scripts, where
        elif first == "make":
            assert set(command.argv[1:]) <= targets, where
        elif first == "pip":
            named = re.search(r"\[(.+)\]", command.argv[2])
            assert named, where
            assert set(named[1].split(",")) <= set(extras["options.extras_require"]), where
        elif first == "python" and command.argv[1].startswith("experiments/"):
            _check_script(command, where)
        elif first == ".venv/bin/python":
            assert command.argv[1:3] == ("-m", "pytest"), where
            assert (REPOSITORY / command.argv[3]).exists(), where
        else:
            assert first in ("python3", ".", "openssl", "sha256sum", "unzip", "cd", "export", "git"), where


def _check_script(command: Command, where: str) -> None:
    """The script exists, and so do the flags and the choices that it is given."""
    tree = ast.parse((REPOSITORY / command.argv[1]).read_text(encoding="utf-8"))
    calls = [node for node in ast.walk(tree) if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute)]
    defined = {
        call.args[0].value
        for call in calls
        if call.func.attr.startswith("DEFINE_") and isinstance(call.args[0], ast.Constant)
    }
    for word in command.argv[2:]:
        name, _, value = word.removeprefix("--").partition("=")
        assert name in defined, f"{where}: no flag --{name}"
        if value.startswith(("experiments/", "tflite_models/")):
            assert (REPOSITORY / value).exists(), where
        if name in ("training", "baseline"):
            assert any(f'"{value}"' in file.read_text(encoding="utf-8") for file in EXPERIMENTS.glob("*.py")), where


def test_every_script_has_its_row_and_every_row_its_script():
    named = set(re.findall(r"`(\w+\.py)[` ]", read("experiments/README.md")))
    assert named == {path.name for path in EXPERIMENTS.glob("*.py")}


@pytest.mark.parametrize("document", DOCUMENTS)
def test_links_lead_somewhere(document):
    text = "\n".join(line for _, kind, line in prose_and_code(document) if kind == "prose")
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        if target.startswith("https://"):
            continue
        path, _, anchor = target.partition("#")
        file = (REPOSITORY / document).parent / path if path else REPOSITORY / document
        assert file.exists(), f"{document}: {target}"
        if anchor:
            titles = re.findall(r"^#+ (.+)$", file.read_text(encoding="utf-8"), re.MULTILINE)
            assert anchor in {_slug(title) for title in titles}, f"{document}: {target}"


def _slug(title: str) -> str:
    return re.sub(r"[^\w -]", "", title.lower()).replace(" ", "-")


def test_examples_of_contributing_are_python():
    blocks = re.findall(r"```python\n(.*?)```", read("CONTRIBUTING.md"), re.DOTALL)
    assert len(blocks) >= 6
    for block in blocks:
        ast.parse(block)


def test_numbers_of_the_readme_are_those_of_the_experiments():
    rows = [line for line in read("README.md").splitlines() if line.startswith("| ") and "px |" in line]
    assert len(rows) == 6
    measured = read("experiments/README.md")
    for row in rows:
        for number in re.findall(r"\d\.\d{3} \[[^\]]+\]|[+-]\d\.\d{3} \[[^\]]+\]|\d+,\d{3}(?:,\d{3})?|\d+\.\dx", row):
            # How much faster the small network is follows from its table's milliseconds.
            assert number in measured or number == "3.2x", f"{number} of {row}"


def test_shipped_files_are_those_of_their_table():
    text = read("tflite_models/README.md")
    files = sorted(SHIPPED.glob("*.tflite"))
    sums = dict(line.split()[::-1] for line in read("tflite_models/SHA256SUMS").splitlines())
    assert set(sums) == {file.name for file in files}
    for file in files:
        digest = hashlib.sha256(file.read_bytes()).hexdigest()
        assert sums[file.name] == digest
        row = next(line for line in text.splitlines() if line.startswith("|") and file.name in line)
        assert f"| {file.stat().st_size:,} |" in row
        assert digest in row
        card = file.with_suffix(".md").read_text(encoding="utf-8")
        for number in re.findall(r"\d\.\d{3} \[[^\]]+\]", row):
            assert number in card, number


def test_messages_of_the_troubleshooting_are_said_somewhere():
    section = read("README.md").partition("## Troubleshooting")[2]
    messages = re.findall(r"^\| `([^`]+)`", section, re.MULTILINE)
    assert len(messages) == 6
    source = "\n".join(path.read_text(encoding="utf-8") for path in (REPOSITORY / "cxr_compress").rglob("*.py"))
    assert not [text for text in messages if text not in source and text not in NOT_OURS]


def test_data_sets_and_commands_are_all_named():
    from cxr_compress.data import DATASETS

    text = read("README.md")
    parser = configparser.ConfigParser()
    parser.read(REPOSITORY / "setup.cfg")
    scripts = [line.split()[0] for line in parser["options.entry_points"]["console_scripts"].split("\n") if line]
    assert not [name for name in (*DATASETS, *scripts) if f"`{name}`" not in text]


@pytest.mark.parametrize("document", DOCUMENTS)
def test_words(document):
    text = "\n".join(line for _, kind, line in prose_and_code(document) if kind == "prose")
    text = re.sub(r"(?s)\n## Words\n.*?(?=\n## )", "", text)  # the glossary names what is not said
    plain = re.sub(r"`[^`]*`|\]\([^)]*\)|\"[^\"]*\"", "", text)
    found = re.findall(
        r"(?i)\b(films?|uncut|thin|thinner|thinned|\w*quantis\w*|colour\w*|normalis\w*|/work\S*)\b", plain
    )
    assert not found, document
