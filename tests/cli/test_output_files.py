"""What commands are told to write: no other format, nothing of the user's replaced, no file that is read."""

from __future__ import annotations

import importlib
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from cxr_compress.cli.app import UsageError
from cxr_compress.cli.convert import main as convert
from cxr_compress.cli.output import Output, check_outputs
from cxr_compress.device.modelfile import read_model
from cxr_compress.errors import CompressionError
from cxr_compress.models.files import save_model
from tests.device.reference import INT8_MODEL, PROBE_PACK
from tests.lite import nets

Main = Callable[[list[str]], int]
# Of every command the flags that it needs before it looks at the file it is to write, which comes last.
COMMANDS = [
    ("convert", ["--keras_model_file=in.keras"], "output_file", ".tflite"),
    ("evaluate", [f"--model={INT8_MODEL}", "--dataset=csv", "--data_dir=in.csv"], "output_file", ".json"),
    ("evaluate", [f"--model={INT8_MODEL}", "--dataset=csv", "--data_dir=in.csv"], "predictions_file", ".csv"),
    ("import_weights", ["--input_file=in.npz"], "output_file", ".keras"),
    ("benchmark", [f"--layers={PROBE_PACK}"], "output_file", ".json"),
    ("data", ["split", "--dataset=csv", "--data_dir=in.csv"], "output_file", ".csv"),
    (
        "compress",
        ["--model=tiny_chexnet", "--dataset=csv", "--data_dir=in.csv", "--output_dir=run"],
        "probe_pack",
        ".zip",
    ),
    ("inspect", ["in.keras", "--plan=in.json"], "plot", ".png"),
]


@pytest.fixture
def work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder: inputs that no command reads before it looks at its outputs."""
    for name in ("in.keras", "in.csv", "in.npz", "in.json"):
        (tmp_path / name).write_bytes(b"in")
    (tmp_path / "full").mkdir()
    os.mkfifo(tmp_path / "pipe.fifo")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def refusal(command: str, arguments: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    """The one line of a command that must not begin."""
    main: Main = importlib.import_module(f"cxr_compress.cli.{command}").main
    assert main(arguments) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.count("\n") == 1
    return err


@pytest.mark.parametrize(("command", "arguments", "flag", "suffix"), COMMANDS)
def test_every_command_leaves_what_it_did_not_write(
    work: Path, capsys: pytest.CaptureFixture[str], command: str, arguments: list[str], flag: str, suffix: str
) -> None:
    mine = work / f"mine{suffix}"
    mine.write_bytes(b"a file of mine")
    (work / f"gone{suffix}").symlink_to(work / "nowhere")
    (work / f"pipe{suffix}").symlink_to(work / "pipe.fifo")
    (work / f"full{suffix}").mkdir()
    other = ".onnx"
    (work / f"model{other}").write_bytes(b"a model of mine")
    before = {path: path.read_bytes() for path in (mine, work / f"model{other}")}
    for name, text in {
        f"model{other}": f"{suffix}",
        mine.name: "is there already, and not a file that",
        f"gone{suffix}": "is a link to nothing",
        f"pipe{suffix}": "is a pipe: give the name of a file",
        f"full{suffix}": "is a folder: give the name of a file",
        f"no/x{suffix}": "the folder of --",
    }.items():
        assert text in refusal(command, [*arguments, f"--{flag}={name}"], capsys)
    assert {path: path.read_bytes() for path in before} == before
    assert sorted(path.name for path in work.iterdir() if path.name.startswith(".tmp")) == []


@pytest.mark.parametrize(("command", "arguments", "flag", "suffix"), COMMANDS)
def test_no_command_writes_over_what_it_reads_not_even_if_told_to(
    work: Path, capsys: pytest.CaptureFixture[str], command: str, arguments: list[str], flag: str, suffix: str
) -> None:
    read = next((work / f"in.{kind}" for kind in ("keras", "csv", "npz") if f"in.{kind}" in " ".join(arguments)), None)
    for link in (work / f"link{suffix}", work / f"hard{suffix}"):
        source = read or Path(PROBE_PACK)
        link.symlink_to(source) if link.stem == "link" or read is None else link.hardlink_to(source)
        line = refusal(command, [*arguments, f"--{flag}={link}", "--overwrite"], capsys)
        assert f"{link} is a file that this command reads: give another name" in line


def test_a_table_that_an_option_names_is_read_too(work: Path, capsys: pytest.CaptureFixture[str]) -> None:
    flags = [f"--model={INT8_MODEL}", "--dataset=csv", "--data_dir=full", "--options=table=in.csv", "--overwrite"]
    line = refusal("evaluate", [*flags, "--predictions_file=in.csv"], capsys)
    assert "in.csv is a file that this command reads" in line


def test_check_outputs_overwrite_is_for_files_beside_what_is_read(tmp_path: Path) -> None:
    images = tmp_path / "images"
    images.mkdir()
    for path in (images / "labels.csv", tmp_path / "mine.csv"):
        path.write_text("mine")

    def check(path: Path, *, overwrite: bool = False, made: str = "") -> None:
        output = Output("output_file", path, ".csv", lambda _: made)
        check_outputs("cxr_x", [output], inputs=[images, None], overwrite=overwrite)

    check(images / "new.csv")
    check(tmp_path / "mine.csv", overwrite=True)
    check(images / "labels.csv", made="a table of ours")
    for overwrite in (False, True):
        with pytest.raises(CompressionError, match="is a file of a folder that this command reads"):
            check(images / "labels.csv", overwrite=overwrite)
    two = [Output(flag, tmp_path / "x.csv", ".csv", lambda _: "") for flag in ("one", "other")]
    with pytest.raises(UsageError, match=r"--one and --other are both .*: give two names"):
        check_outputs("cxr_x", two, inputs=[], overwrite=True)


@pytest.mark.parametrize("name", ["x.TFLITE", "x"])
def test_check_outputs_names_without_another_format_are_taken(tmp_path: Path, name: str) -> None:
    output = Output("output_file", tmp_path / name, ".tflite", lambda _: "")
    check_outputs("cxr_x", [output], inputs=[], overwrite=False)


@pytest.mark.parametrize("suffix", [".onnx", ".keras", ".h5", ".pb", ".json", ".v2", ".tflite.bak"])
def test_check_outputs_another_suffix_is_refused_with_what_is_written(tmp_path: Path, suffix: str) -> None:
    output = Output("output_file", tmp_path / f"x{suffix}", ".tflite", lambda _: "")
    with pytest.raises(UsageError, match=r"expected --output_file to end in .tflite, got 'x\..*'"):
        check_outputs("cxr_x", [output], inputs=[], overwrite=True)


def test_convert_replaces_its_own_file_and_says_so_and_no_other_unasked(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    save_model(nets.chain(), tmp_path / "model.keras")
    target = tmp_path / "x.tflite"
    source = (f"--keras_model_file={tmp_path / 'model.keras'}", "--preset=unit")
    assert convert([*source, f"--output_file={target}"]) == 0
    content = target.read_bytes()
    capsys.readouterr()
    assert convert([*source, f"--output_file={target}", "--labels=a,b,c,d"]) == 0
    err = capsys.readouterr().err
    assert f"replaces {target}, which cxr_convert wrote before as model_none" in err
    assert read_model(target).info.labels == ("a", "b", "c", "d")
    assert target.read_bytes() != content
    for foreign in (content[:-1], read_model(target).content, Path(INT8_MODEL).read_bytes()):
        target.write_bytes(foreign)
        assert convert([*source, f"--output_file={target}"]) == 2
        assert "not a file that cxr_convert is known to have written" in capsys.readouterr().err
        assert target.read_bytes() == foreign
    assert convert([*source, f"--output_file={target}", "--overwrite"]) == 0
    assert target.read_bytes() == content


@pytest.mark.parametrize("name", ["model.keras", "training.json", "recipe.json", "manifests"])
def test_train_leaves_a_folder_that_is_not_of_a_training(
    work: Path, capsys: pytest.CaptureFixture[str], name: str
) -> None:
    (work / "full" / name).write_text("mine")
    line = refusal("train", ["--model=tiny_chexnet", "--dataset=csv", "--data_dir=in.csv", "--output_dir=full"], capsys)
    assert f"--output_dir full holds {name} and is no folder of a training: give another --output_dir" in line
    assert (work / "full" / name).read_text() == "mine"


@pytest.mark.parametrize("command", ["train", "compress"])
def test_a_folder_that_cannot_be_made_is_one_line_before_anything_is_read(
    work: Path, capsys: pytest.CaptureFixture[str], command: str
) -> None:
    flags = ["--model=tiny_chexnet", "--dataset=csv", "--data_dir=in.csv"]
    assert "in.csv is a file, expected a folder" in refusal(command, [*flags, "--output_dir=in.csv/run"], capsys)
    assert "nothing can be written into /proc" in refusal(command, [*flags, "--output_dir=/proc/run"], capsys)
