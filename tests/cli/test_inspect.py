"""cxr_inspect from its flags to what a user reads, for Keras models, plans and .tflite files."""

from __future__ import annotations

import csv
import io
import json
import os
import sys
from pathlib import Path
from typing import Any

import pytest

from cxr_compress.cli.inspect import main
from cxr_compress.device import INTENDED_USE, read_model
from cxr_compress.keras2 import keras
from cxr_compress.models.files import save_model
from cxr_compress.report.plots import HEADERS, TOTAL
from cxr_compress.structured import (
    Budget,
    analyze_channels,
    measure_cost,
    remove_channels,
    score_channels,
    select_channels,
)
from tests import nets
from tests.cli.runner import BLOCK_TENSORFLOW, run_module
from tests.device.reference import FLOAT_MODEL, INT8_MODEL


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """residual.keras and .h5 with a plan, that plan edited in several ways, and files that are no models."""
    folder = tmp_path_factory.mktemp("inspect")
    model = nets.residual()
    save_model(model, folder / "residual.keras")
    with pytest.warns(UserWarning, match="HDF5"):
        model.save(folder / "residual.h5")
    save_model(nets.nested(), folder / "nested.keras")
    analysis = analyze_channels(model)
    plan = select_channels(analysis, score_channels(model, analysis), Budget(macs=0.6), round_to=1)
    (folder / "plan.json").write_text(plan.to_json(), encoding="utf-8")
    values = json.loads(plan.to_json())
    for name, kept in {"edited": [0, 1], "empty": []}.items():
        values["groups"]["stem"]["kept"] = kept
        (folder / f"{name}.json").write_text(json.dumps(values), encoding="utf-8")
    (folder / "image.png").write_bytes(b"\x89PNG\r\n\x1a\n")
    (folder / "image.keras").write_bytes(b"\x89PNG\r\n\x1a\n")
    (folder / "image.tflite").write_bytes(b"\x89PNG\r\n\x1a\n0000")
    (folder / "foreign.tflite").write_bytes(read_model(FLOAT_MODEL).content)
    (folder / "cut.tflite").write_bytes(INT8_MODEL.read_bytes()[:-40])
    return folder


def call(folder: Path, capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    """Exit code, stdout and stderr; FOLDER stands for the fixture's."""
    code = main([argument.replace("FOLDER", str(folder)) for argument in arguments])
    printed = capsys.readouterr()
    return code, printed.out, printed.err


def document(folder: Path, capsys: pytest.CaptureFixture[str], *arguments: str) -> dict[str, Any]:
    code, out, err = call(folder, capsys, *arguments, "--format=json")
    assert (code, err) == (0, "")
    found = json.loads(out)
    assert found["intended_use"] == INTENDED_USE
    return found


def test_inspect_lists_groups_under_a_summary(folder, capsys):
    code, out, err = call(folder, capsys, "FOLDER/residual.keras")
    assert (code, err) == (0, "")
    cost = measure_cost(nets.residual())
    assert f"params                {cost.params:,}\n" in out
    assert f"MACs per image        {cost.macs:,}\n" in out
    assert "groups that may go    3 with 30 channels\n" in out
    assert "  1 x reaches the output of the model\n" in out
    (line,) = (line for line in out.splitlines() if line.startswith("stem "))
    assert line.split()[:6] == ["stem", "8", "b", "d", "a", "d"]
    assert out.endswith(f"\n\n{INTENDED_USE}\n")


def test_inspect_model_whose_macs_are_not_known_says_which_layers_are_missing(tmp_path, capsys):
    layers, image = keras.layers, keras.Input((4, 4, 3))
    x = layers.Reshape((16, 8))(layers.Conv2D(8, 1)(image))
    x = layers.Flatten()(layers.MultiHeadAttention(2, 4, name="mha")(x, x))
    save_model(keras.Model(image, layers.Dense(2)(x)), tmp_path / "attends.keras")
    code, out, _ = call(tmp_path, capsys, "FOLDER/attends.keras", "--what=layers")
    assert code == 0
    assert "MACs per image        ? (not counted: mha (MultiHeadAttention))\n" in out
    assert next(line for line in out.splitlines() if line.startswith("mha ")).split()[4:6] == ["288", "?"]
    found = document(tmp_path, capsys, "FOLDER/attends.keras")
    assert (found["summary"]["macs"], found["summary"]["not_counted"]) == (None, ["mha (MultiHeadAttention)"])


def test_inspect_lists_layers_with_why_not(folder, capsys):
    code, out, _ = call(folder, capsys, "FOLDER/residual.h5", "--what=layers")
    assert code == 0
    lines = {line.split()[0]: line for line in out.splitlines() if line}
    assert lines["b"].split() == ["b", "Conv2D", "8x8x8", "2", "1160", "73728", "8", "stem", "yes"]
    assert lines["logits"].endswith("no: reaches the output of the model")
    assert lines["first_add"].split()[-1] == "stem"  # of an Add: no word on filters


def test_inspect_lists_protected_groups_with_reasons(folder, capsys):
    code, out, _ = call(folder, capsys, "FOLDER/residual.keras", "--what=protected", "--exclude=a,c", "--format=csv")
    assert code == 0
    assert list(csv.reader(io.StringIO(out))) == [
        ["group", "reason"],
        ["image", "is an input of the model"],
        ["a", "excluded by 'a'"],
        ["c", "excluded by 'c'"],
        ["logits", "reaches the output of the model"],
    ]


def test_inspect_json_carries_everything_whatever_is_listed(folder, capsys):
    found = document(folder, capsys, "FOLDER/nested.keras", "--what=protected")
    assert {"summary", "groups", "layers", "protected"} <= set(found)
    assert [group["name"] for group in found["groups"]] == ["backbone/stem", "backbone/body", "hidden"]
    assert sum(layer["macs"] for layer in found["layers"]) == found["summary"]["macs"]


def test_inspect_allow_inexact_reaches_the_analysis(folder, tmp_path, capsys):
    image = keras.Input((8, 8, 3))
    x = keras.layers.LayerNormalization()(keras.layers.Conv2D(4, 1, name="conv")(image))
    save_model(keras.Model(image, keras.layers.Conv2D(2, 1)(x)), tmp_path / "norm.keras")
    path = str(tmp_path / "norm.keras")
    assert [group["name"] for group in document(folder, capsys, path)["groups"]] == []
    assert [group["name"] for group in document(folder, capsys, path, "--allow_inexact")["groups"]] == ["conv"]


def test_inspect_plan_says_what_each_layer_lost(folder, capsys):
    code, out, _ = call(folder, capsys, "FOLDER/residual.keras", "--plan=FOLDER/plan.json", "--format=csv")
    assert code == 0
    rows = list(csv.DictReader(io.StringIO(out)))
    assert tuple(rows[0]) == HEADERS
    assert [row["layer"] for row in rows[:6]] == ["stem", "a", "b", "d", "c", "logits"]
    plan = json.loads((folder / "plan.json").read_text(encoding="utf-8"))
    for row in rows[:-2]:
        assert int(row["filters"]) - int(row["kept"]) == int(row["removed"])
    assert int(rows[0]["removed"]) == int(rows[2]["removed"]) == plan["groups"]["stem"]["removed"]
    assert rows[-1]["layer"] == TOTAL
    assert int(rows[-1]["macs_after"]) == plan["after"]["macs"]
    assert int(rows[-1]["params_after"]) == plan["after"]["params"]


def test_inspect_plan_that_is_a_pipe_is_refused_and_not_waited_for(folder, tmp_path, capsys):
    os.mkfifo(tmp_path / "plan.json")
    code, _, err = call(folder, capsys, "FOLDER/residual.keras", f"--plan={tmp_path / 'plan.json'}")
    assert code == 2
    assert "expected --plan to be a plan.json, got" in err
    assert "which is a pipe" in err


def test_inspect_plan_that_was_edited_is_counted_anew(folder, capsys):
    flags = ["FOLDER/residual.keras", "--plan=FOLDER/edited.json"]
    code, out, _ = call(folder, capsys, *flags)
    assert code == 0
    assert "edited since it was made: these costs are counted anew" in out
    assert "edited" not in call(folder, capsys, "FOLDER/residual.keras", "--plan=FOLDER/plan.json")[1]
    found = document(folder, capsys, *flags)
    from cxr_compress.structured import ChannelPlan

    plan = ChannelPlan.from_json((folder / "edited.json").read_text(encoding="utf-8"))
    assert found["after"] == measure_cost(remove_channels(nets.residual(), plan)).to_dict()


def test_inspect_plan_shows_predicted_bytes_and_milliseconds(folder, tmp_path, capsys):
    values = json.loads((folder / "plan.json").read_text(encoding="utf-8"))
    values["before"].update(tflite_bytes=20_000, latency_ms=3.5)
    values["after"].update(tflite_bytes=12_000, latency_ms=1.25)
    (tmp_path / "plan.json").write_text(json.dumps(values), encoding="utf-8")
    code, out, _ = call(folder, capsys, "FOLDER/residual.keras", f"--plan={tmp_path / 'plan.json'}")
    assert code == 0
    assert "predicted: tflite_bytes 20,000 -> 12,000, latency_ms 3.5 -> 1.25\n" in out


def test_inspect_plot_writes_a_png(folder, tmp_path, capsys):
    target = tmp_path / "plan.png"
    code, out, _ = call(folder, capsys, "FOLDER/residual.keras", "--plan=FOLDER/plan.json", f"--plot={target}")
    assert code == 0
    assert target.read_bytes().startswith(b"\x89PNG\r\n\x1a\n")
    assert list(tmp_path.iterdir()) == [target]
    assert TOTAL in out


def test_inspect_plot_without_matplotlib_says_what_to_install(folder, tmp_path, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    flags = ["FOLDER/residual.keras", "--plan=FOLDER/plan.json", f"--plot={tmp_path / 'x.png'}"]
    code, out, err = call(folder, capsys, *flags)
    assert (code, out) == (2, "")
    assert err == (
        "cxr_inspect: needs the Python package matplotlib, which is not installed: pip install 'cxr-compress[report]'\n"
    )


def test_inspect_own_tflite_shows_operators_ends_and_what_it_says_of_itself(folder, capsys):
    code, out, err = call(folder, capsys, str(INT8_MODEL))
    assert (code, err) == (0, "")
    info = read_model(INT8_MODEL).info
    assert f"quantization {info.quant_type}" in out
    assert f"labels  {', '.join(info.labels)}\n" in out
    assert "float   no float islands\n" in out
    assert "scale " in out
    assert "kernel weights (" in out
    found = document(folder, capsys, str(INT8_MODEL))
    assert found["info"]["labels"] == list(info.labels)
    assert {op["kind"] for op in found["ops"]} >= {"CONV_2D", "CONCATENATION"}
    assert all(f"{op['kind']} " in out for op in found["ops"])


def test_inspect_foreign_tflite_is_read_too(folder, capsys):
    code, out, _ = call(folder, capsys, "FOLDER/foreign.tflite")
    assert code == 0
    assert "not of cxr_compress: no labels and no preprocessing inside" in out
    assert "computes in float" in out
    assert document(folder, capsys, "FOLDER/foreign.tflite")["info"] is None


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "expected one model file, got 0"),
        (["FOLDER/residual.keras", "FOLDER/nested.keras"], "expected one model file, got 2"),
        (["FOLDER/image.png"], "expected a model file (.keras, .h5, .hdf5, .tflite), got image.png"),
        (["FOLDER/image.keras"], "image.keras is no complete .keras file"),
        (["FOLDER/image.tflite"], "image.tflite: is not a .tflite file"),
        (["FOLDER/cut.tflite"], "cut.tflite: is cut short or damaged"),
        (["FOLDER/nothing.keras"], "nothing.keras does not exist: check the path"),
        (["FOLDER"], "expected a model file, got the folder"),
        (["FOLDER/residual.keras", "--what=all"], "--what=all: value should be one of <groups|layers|protected>"),
        (["FOLDER/residual.keras", "--exclude=nothing"], "exclude 'nothing' matches no layer that makes channels"),
        (["FOLDER/residual.keras", "--exclude=("], "expected regular expressions in --exclude, got '('"),
        (["FOLDER/residual.keras", "--plan=FOLDER/nothing.json"], "nothing.json does not exist: check the path"),
        (["FOLDER/residual.keras", "--plan=FOLDER/image.png"], "expected --plan to be a plan.json, got"),
        (["FOLDER/residual.keras", "--plan=FOLDER/empty.json"], "group 'stem' would keep none of its 8 channels"),
        (["FOLDER/nested.keras", "--plan=FOLDER/plan.json"], "group 'stem' of the plan is not in this model: apply"),
        (["FOLDER/residual.keras", "--plan=FOLDER/plan.json", "--exclude=a"], "--exclude does not go with --plan"),
        (["FOLDER/residual.keras", "--plot=x.png"], "--plot draws a plan: give --plan=FILE too"),
        (["FOLDER/residual.keras", "--plan=FOLDER/plan.json", "--plot=x.jpg"], "expected --plot to end in .png, got"),
        (
            ["FOLDER/residual.keras", "--plan=FOLDER/plan.json", "--plot=no/x.png"],
            "the folder of --plot, no, does not exist: create it",
        ),
        ([str(INT8_MODEL), "--plan=FOLDER/plan.json"], "--plan is for Keras models"),
        ([str(INT8_MODEL), "--what=layers"], "--what is for Keras models"),
        (["FOLDER/residual.keras", "--no_such_flag"], "no_such_flag"),
    ],
)
def test_inspect_of_bad_input_ends_with_one_line_and_code_2(folder, capsys, arguments, message):
    code, out, err = call(folder, capsys, *arguments)
    assert (code, out) == (2, "")
    assert len(err.splitlines()) == 1
    assert err.startswith("cxr_inspect: ")
    assert message in err


class Subclassed(keras.Model):
    """A model whose wiring Keras does not know."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.dense = keras.layers.Dense(2)

    def call(self, inputs: Any) -> Any:
        return self.dense(inputs)


def test_inspect_of_a_subclassed_model_ends_with_one_line(folder, tmp_path, capsys):
    model = Subclassed()
    model(nets.batch(nets.residual()))
    model.save(tmp_path / "own.keras")
    code, out, err = call(folder, capsys, str(tmp_path / "own.keras"))
    assert (code, out, len(err.splitlines())) == (2, "", 1)
    assert "own.keras needs the class Subclassed, which is not one of Keras" in err


def test_inspect_of_an_open_input_size_ends_with_one_line(folder, tmp_path, capsys):
    image = keras.Input((None, None, 3))
    save_model(keras.Model(image, keras.layers.Conv2D(2, 3)(image)), tmp_path / "open.keras")
    code, _, err = call(folder, capsys, str(tmp_path / "open.keras"))
    assert (code, len(err.splitlines())) == (2, 1)
    assert "expected a model with a fixed input size" in err


def test_inspect_checks_its_call_and_reads_tflite_without_tensorflow(folder):
    wrong = run_module("inspect", str(folder / "image.png"), prelude=BLOCK_TENSORFLOW)
    assert (wrong.returncode, "got image.png" in wrong.stderr) == (2, True)
    right = run_module("inspect", str(INT8_MODEL), prelude=BLOCK_TENSORFLOW)
    assert (right.returncode, right.stderr) == (0, "")
    blocked = run_module("inspect", str(folder / "residual.keras"), prelude=BLOCK_TENSORFLOW)
    assert blocked.returncode != 0  # control: the blocker blocks


def test_inspect_as_a_process_keeps_native_noise_off_stderr(folder):
    done = run_module("inspect", str(folder / "residual.keras"), f"--plan={folder / 'plan.json'}")
    assert (done.returncode, done.stderr) == (0, "")
    assert TOTAL in done.stdout


def test_inspect_help_ends_with_0(capsys):
    assert main(["--help"]) == 0
    out = capsys.readouterr().out
    assert "cxr_inspect model.keras --plan=run/plan.json --plot=plan.png" in out
    assert "--[no]allow_inexact" in out
