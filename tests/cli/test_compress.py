"""cxr_compress on the command line: every wrong call is one line and exit code 2, before TensorFlow is loaded."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys

import pytest

from cxr_compress.cli import compress
from cxr_compress.cli.compress import define_flags
from cxr_compress.cli.recipe_flags import make_recipe_of
from cxr_compress.errors import CompressionError
from cxr_compress.recipe import Recipe
from cxr_compress.recipe.fields import all_entries

NIH = ("--model=chexnet", "--dataset=nih")
IMAGES = ("--keras_model_file=mine.keras", "--dataset=images")


def call(capsys, *arguments: str) -> tuple[int, str, str]:
    code = compress.main(list(arguments))
    captured = capsys.readouterr()
    return code, captured.out, captured.err


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        ([], "expected --model=NAME to train one or --keras_model_file=FILE to start from; got neither"),
        (["--model=tiny_chexnet"], "expected --dataset, one of chexpert, csv"),
        (["--model=tiny_chexnet", "--dataset=kermany"], "expected --data_dir=FOLDER, got none"),
        (
            ["--model=chexnet", "--dataset=kermany", "--data_dir=nowhere", "--output_dir=o"],
            "expected --data_dir to exist",
        ),
        (
            ["--model=chexnet", "--dataset=nih", "--target_macs=half"],
            "expected --target_macs as a fraction such as 0.5",
        ),
        (
            ["--model=chexnet", "--dataset=nih", "--weight_sparsity=1"],
            "expected sparsity.fraction (--weight_sparsity) to be in [0, 1); got 1.0",
        ),
        ([*NIH, "--scope=both"], "--scope=both: value should be one of <global|local|sensitivity|latency>"),
        ([*NIH, "--overrides=stem"], "expected --overrides as NAME=NUMBER,..., for example stem.*=0.2; got 'stem'"),
        ([*NIH, "--overrides=stem=1.5"], "expected removal.overrides (--overrides) of 'stem' to be in [0, 1]; got 1.5"),
        ([*NIH, "--exclude=conv("], "(--exclude) to be regular expressions, which 'conv(' is not"),
        (
            [*NIH, "--target_bytes=1GB"],
            "expected --target_bytes as a fraction such as 0.5 or a whole number, got '1GB'",
        ),
        (
            [*NIH, "--data_dir=.", "--output_dir=o", "--latency_table=gone.json"],
            "expected --latency_table to be a file",
        ),
        (
            [*NIH, "--data_dir=.", "--output_dir=o", f"--latency_table={__file__}"],
            "--latency_table is for a bound on latency: give --target_latency_ms too",
        ),
        (
            [*NIH, "--weight_sparsity=0.5", "--weight_threshold=0.1"],
            "to be 0 beside weight_threshold: give a share or a threshold, not both; got 0.5",
        ),
        ([*NIH, "--weight_threshold=-1"], "(--weight_threshold) to be above 0; got -1.0"),
        ([*NIH, "--sparsity_pattern=2:4", "--weight_sparsity=0.7"], "(--weight_sparsity) to be 0.5 with 2:4"),
        ([*NIH, "--sparsity_block=4,wide"], "expected --sparsity_block as whole numbers, for example 1,4"),
        ([*NIH, "--percentile=20"], "(--percentile) to be above 50 and up to 100; got 20.0"),
        ([*NIH, "--sparsity_allocation=some"], "value should be one of <layer|global|erk>"),
        ([*NIH, "--schedule_epochs=1", "--recovery_epochs=2"], "at least the 2 epochs of recovery"),
        ([*NIH, "--from_scratch", "--recovery_epochs=0"], "(--recovery_epochs) to be 1 or more with from_scratch"),
        (
            [*NIH, "--qat=always", "--quant_type=fp16"],
            "expected export.quant_type (--quant_type) to be int8 or int8_float_io with qat=always",
        ),
        ([*NIH, "--auto_fallback=3"], "(--quant_type) to be int8_float_io with auto_fallback"),
        ([*NIH, "--max_auroc_drop=-0.1"], "expected gate.max_auroc_drop (--max_auroc_drop) to be 0 or more"),
        ([*NIH, "--options=uncertain"], "expected --options as name=value, got 'uncertain'"),
        (
            [*NIH, "--data_dir=.", "--output_dir=o", "--search", "--dry_run"],
            "--dry_run forecasts one run, not a search: leave one of the two out",
        ),
        (
            [*NIH, "--data_dir=.", "--output_dir=o", "--search", "--target_bytes=0.5"],
            "--search wants --target_bytes as a number of bytes such as 1MB, got a fraction",
        ),
        (
            [*IMAGES[1:], "--model=tiny_chexnet", "--data_dir=.", "--output_dir=o"],
            "expected --keras_model_file with --dataset=images: without labels no model can be trained",
        ),
        (
            [*IMAGES, "--data_dir=.", "--output_dir=o", "--search"],
            "--search judges by AUROC, for which --dataset=images has no labels: give a budget such as",
        ),
        (
            [*IMAGES, "--max_auroc_drop=0.01"],
            "--max_auroc_drop is for images with labels, which --dataset=images has not: give --max_flips or",
        ),
        ([*IMAGES, "--margin=0.01"], "--margin is for images with labels, which --dataset=images has not"),
        (
            [*NIH, "--max_flips=0.01"],
            "--max_flips is for images without labels, which --dataset=nih has: give --max_auroc_drop or --margin",
        ),
        (
            [*IMAGES, "--distill_weight=0.5"],
            "--distill_weight=0.5 leaves a share of the loss to labels, which --dataset=images has not: leave it out",
        ),
        ([*IMAGES, "--max_flips=1"], "expected gate.max_flips (--max_flips) to be in [0, 1); got 1.0"),
        (["--recipe=missing.json"], "expected --recipe to be a file, got 'missing.json'"),
        (["--quant_type=int3"], "value should be one of"),
        (["--taget_macs=0.5"], "Unknown command line flag 'taget_macs'. Did you mean: target_macs"),
        (["surplus"], "expected flags only, got 'surplus'"),
    ],
)
def test_compress_wrong_call_is_one_line_and_exit_code_2(capsys, arguments, line):
    code, out, err = call(capsys, *arguments)
    assert code == 2
    assert out == ""
    assert line in err
    assert err.count("\n") == 1


def test_compress_help_fits_on_a_screen_and_helpfull_names_every_field_under_its_section(capsys):
    code, out, _ = call(capsys, "--help")
    assert code == 0
    assert out.count("\n") <= 40
    assert "Multiply-accumulates that may stay: a fraction such as 0.5" in out
    assert "cxr_compress --helpfull" in out
    assert out.endswith("Research use only; not a medical device and not a diagnosis.\n")
    code, out, _ = call(capsys, "--helpfull")
    assert code == 0
    for entry in all_entries():
        assert re.search(rf"^  --(\[no\])?{entry.flag}[:=]", out, re.MULTILINE), entry.flag
    assert "\nremoval: Removal of filters: how many go, and which:\n  --target_macs: " in out


def test_compress_wrong_flag_loads_no_tensorflow():
    script = (
        "import sys; from cxr_compress.cli.compress import main; code = main(['--nonsense']); "
        "code = code and main(['--model=chexnet', '--dataset=nih', '--epochs=0']); "
        "sys.exit(99 if 'tensorflow' in sys.modules or 'tf_keras' in sys.modules else code)"
    )
    assert subprocess.run([sys.executable, "-c", script], check=False, capture_output=True).returncode == 2


def test_compress_recipe_file_with_an_unknown_key_is_one_line(capsys, tmp_path):
    path = tmp_path / "recipe.json"
    path.write_text(json.dumps({"format": 2, "removal": {"scoop": "global"}}))
    code, out, err = call(capsys, f"--recipe={path}")
    assert (code, out) == (2, "")
    assert err == "cxr_compress: unknown key 'scoop' in section removal of the recipe: did you mean 'scope'?\n"


@pytest.mark.parametrize("content", [b"\x80\x81\xff", b"", b'{"format": 1, "epochs": '])
def test_compress_recipe_file_that_is_no_json_says_what_was_expected(tmp_path, content):
    path = tmp_path / "recipe.json"
    path.write_bytes(content)
    with pytest.raises(CompressionError, match="expected a recipe as JSON; could not read it"):
        make_recipe_of(compress_flags(f"--recipe={path}"))


def test_compress_empty_data_folder_is_one_line(capsys, tmp_path):
    arguments = [
        "--model=tiny_chexnet",
        "--dataset=kermany",
        f"--data_dir={tmp_path}",
        f"--output_dir={tmp_path / 'o'}",
    ]
    code, _, err = call(capsys, *arguments)
    assert code == 2
    assert err.count("\n") == 1
    assert "train" in err


def test_compress_unknown_architecture_is_one_line(capsys, tmp_path):
    code, _, err = call(
        capsys, "--model=resnet", "--dataset=phantom", f"--data_dir={tmp_path}", f"--output_dir={tmp_path}"
    )
    assert code == 2
    assert "tiny_chexnet, got 'resnet'; any other Keras model comes in as --keras_model_file" in err


def test_compress_interrupted_says_how_to_go_on(capsys, monkeypatch, tmp_path):
    from cxr_compress import pipeline

    def interrupted(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(pipeline, "run_recipe", interrupted)
    folders = (f"--data_dir={tmp_path}", f"--output_dir={tmp_path / 'out'}")
    code, _, err = call(capsys, "--model=tiny_chexnet", "--dataset=phantom", *folders)
    assert code == 130
    assert err.strip().endswith("interrupted; finished epochs and stages are kept; the same command goes on from there")


def compress_flags(*arguments: str):
    from absl import flags

    values = flags.FlagValues()
    define_flags(values)
    values(["cxr_compress", *arguments])
    return values


@pytest.fixture(scope="module")
def phantom(tmp_path_factory):
    from cxr_compress.data import write_phantom

    folder = tmp_path_factory.mktemp("phantom")
    write_phantom(folder, n_train=120, n_test=30, size=64)
    return folder


def phantom_flags(phantom, folder, *more: str) -> list[str]:
    return [
        *("--model=tiny_chexnet", "--dataset=phantom", f"--data_dir={phantom}", f"--output_dir={folder}"),
        *("--input_size=32", "--epochs=1", *more),
    ]


def test_compress_dry_run_trains_nothing_and_says_what_comes_out(capsys, phantom, tmp_path):
    flags = phantom_flags(phantom, tmp_path, "--scope=local", "--dry_run", "--format=json")
    code, out, err = call(capsys, *flags)
    assert code == 0, err
    forecast = json.loads(out)
    assert not forecast["certain"], "the original model is still to be trained"
    assert 0.4 < forecast["after"]["macs"] / forecast["before"]["macs"] <= 0.5
    assert set(forecast["stages"]) >= {"base", "select", "recover", "sparsify", "quantize", "score"}
    assert forecast["seconds"] > 0
    assert not list(tmp_path.iterdir())
    code, out, _ = call(capsys, *flags[:-1])
    assert code == 0
    assert "Planned on random weights" in out
    assert "minutes on this machine" in out


def test_compress_dry_run_of_bytes_before_the_training_says_what_it_cannot_plan(capsys, phantom, tmp_path):
    flags = phantom_flags(phantom, tmp_path, "--target_bytes=1KB", "--dry_run", "--format=json")
    code, out, err = call(capsys, *flags)
    assert code == 0, err
    assert "a budget of bytes can only be planned once the original model is trained" in err
    forecast = json.loads(out)
    assert forecast["after"] == {}
    assert all(forecast["stages"].values()), "0 seconds are shown as done"
    assert forecast["stages"]["export_compressed"] > 0


@pytest.fixture(scope="module")
def base(phantom, tmp_path_factory):
    """A model file of 32 px that says so."""
    from cxr_compress.data import PHANTOM_FINDINGS
    from cxr_compress.models import save_model, tiny_chexnet

    path = tmp_path_factory.mktemp("base") / "base.keras"
    save_model(tiny_chexnet(len(PHANTOM_FINDINGS), (32, 32, 3)), path)
    return path


def from_file(phantom, folder, base, *more: str) -> list[str]:
    folders = (f"--data_dir={phantom}", f"--output_dir={folder}")
    # Random weights, in a file that says nothing.
    known = ("--match=position", "--preset=imagenet_torch", "--force")
    return [f"--keras_model_file={base}", "--dataset=phantom", *folders, *known, "--qat=never", *more]


# The least that a run can do: no training, and two budgets that a second run may differ in.
_QUICK = ("--weight_sparsity=0", "--sparsity_epochs=0", "--recovery_epochs=0", "--calibration_images=16")


def state(folder):
    """Every byte and every time of what is in a folder."""
    return {
        path.relative_to(folder): (path.stat().st_mtime_ns, path.read_bytes() if path.is_file() else b"")
        for path in folder.rglob("*")
    }


@pytest.fixture(scope="module")
def run(phantom, base, tmp_path_factory):
    """A run from the file that was stopped after its plan."""
    folder = tmp_path_factory.mktemp("runs") / "run"
    recipe = make_recipe_of(compress_flags(*from_file(phantom, folder, base, *_QUICK, "--input_size=32")))
    begin(recipe, phantom, folder, base)
    return folder


def begin(recipe, phantom, folder, base, **options) -> None:
    """A run up to its plan."""
    from cxr_compress.pipeline.run import open_run, run_stages, take_folder
    from cxr_compress.pipeline.stages import stages_before
    from cxr_compress.pipeline.stages.remove_filters import RemoveFilters

    opened = open_run(recipe, phantom, folder, base, lambda _: None, lambda *_: None, **options)
    take_folder(opened)
    run_stages(opened, stages_before(RemoveFilters))


@pytest.mark.parametrize("flags", [["--input_size=64"], ["--recipe=RECIPE"]])
def test_compress_another_size_than_the_models_is_one_line_with_both(capsys, phantom, base, tmp_path, flags):
    (tmp_path / "recipe.json").write_text(
        Recipe().with_values(dataset="phantom", model="base", input_size=64).to_json()
    )
    flags = [flag.replace("RECIPE", str(tmp_path / "recipe.json")) for flag in flags]
    code, _, err = call(capsys, *from_file(phantom, tmp_path / "run", base, *flags))
    assert code == 2
    assert "is 64, base.keras takes images of 32 x 32: leave --input_size out" in err
    assert not (tmp_path / "run").exists()


def test_compress_dry_run_makes_the_plan_that_the_run_takes_and_writes_nothing(capsys, phantom, base, run, tmp_path):
    from cxr_compress.structured import ChannelPlan

    code, out, err = call(capsys, *from_file(phantom, tmp_path / "new", base, *_QUICK, "--dry_run", "--format=json"))
    assert code == 0, err
    assert "dry run: nothing is written to" in err
    assert not (tmp_path / "new").exists()
    forecast = json.loads(out)
    assert forecast["certain"]
    assert forecast["after"] == ChannelPlan.from_json((run / "plan.json").read_text()).after.to_dict()
    assert forecast["stages"]["select"] > 0
    before, changed = state(run), run.stat().st_mtime_ns
    code, out, err = call(capsys, *from_file(phantom, run, base, *_QUICK, "--dry_run", "--format=json"))
    assert code == 0, err
    again = json.loads(out)
    assert again["after"] == forecast["after"]
    assert (again["stages"]["base"], again["stages"]["select"]) == (0, 0), "done, and kept in the run"
    assert again["stages"]["repair"] > 0
    # Another budget: the plan and all that comes after it would be made anew, and none of it is.
    code, out, err = call(
        capsys, *from_file(phantom, run, base, *_QUICK, "--target_macs=0.3", "--dry_run", "--format=json")
    )
    assert code == 0, err
    other = json.loads(out)
    assert other["after"]["macs"] < forecast["after"]["macs"]
    assert other["stages"]["base"] == 0
    assert other["stages"]["select"] > 0
    assert (state(run), run.stat().st_mtime_ns) == (before, changed)


def test_compress_refuses_the_folder_of_another_run_and_says_what_differs(capsys, phantom, base, run, tmp_path):
    from cxr_compress.data import PHANTOM_FINDINGS, write_phantom
    from cxr_compress.models import save_model, tiny_chexnet

    other = tiny_chexnet(len(PHANTOM_FINDINGS), (32, 32, 3))
    other.set_weights([weights + 0.01 for weights in other.get_weights()])
    save_model(other, tmp_path / "other.keras")
    write_phantom(tmp_path / "images", n_train=120, n_test=30, size=64, seed=1)
    before = state(run)
    for flags, mode, text in (
        (
            from_file(phantom, run, tmp_path / "other.keras"),
            "--dry_run",
            "differs in the weights of the model to start from: give",
        ),
        (
            from_file(tmp_path / "images", run, base),
            "--nosearch",
            "differs in the images, labels or patients of train and dev: give",
        ),
        (
            phantom_flags(phantom, run),
            "--search",
            "differs in what it starts from: give another --output_dir, or --overwrite",
        ),
    ):
        code, _, err = call(capsys, *flags, mode)
        assert code == 2
        assert text in err
        assert "--output_dir holds another run; it " in err
    assert state(run) == before


def test_compress_refuses_a_folder_of_something_else_only_where_it_would_be_replaced(capsys, phantom, base, tmp_path):
    for name, mode in (("plan.json", "--search"), ("base_fp32.tflite", "--dry_run"), ("training.json", "--nosearch")):
        folder = tmp_path / name.replace(".", "_")
        folder.mkdir()
        (folder / name).write_text("mine")
        code, _, err = call(capsys, *from_file(phantom, folder, base, *_QUICK, mode))
        assert code == 2
        assert f"holds {name} and is not a run of cxr_compress: give another --output_dir" in err
        assert [path.name for path in folder.iterdir()] == [name]
        assert (folder / name).read_text() == "mine"
    (folder / "training.json").unlink()
    (folder / "notes.txt").write_text("mine")
    code, _, err = call(capsys, *from_file(phantom, folder, base, *_QUICK, "--dry_run"))
    assert code == 0, err
    (tmp_path / "file").write_text("mine")
    code, _, err = call(capsys, *from_file(phantom, tmp_path / "file", base))
    assert (code, "file is a file, expected a folder" in err) == (2, True)


def test_compress_overwrite_begins_anew_but_never_over_the_model_it_starts_from(capsys, phantom, base, run, tmp_path):
    from cxr_compress.models import load_model, save_model

    folder = shutil.copytree(run, tmp_path / "run")
    other = load_model(base)
    other.set_weights([weights * 0.9 for weights in other.get_weights()])
    save_model(other, folder / "pruned.keras")
    before = state(folder)
    flags = from_file(phantom, folder, folder / "pruned.keras", *_QUICK, "--target_macs=none", "--overwrite")
    code, _, err = call(capsys, *flags)
    assert code == 2
    assert "the model to start from is pruned.keras in --output_dir, which this run would replace" in err
    assert state(folder) == before
    shutil.copy(folder / "pruned.keras", tmp_path / "start.keras")
    flags = from_file(phantom, folder, tmp_path / "start.keras", *_QUICK, "--target_macs=none")
    assert call(capsys, *flags, "--dry_run")[0] == 2
    code, _, err = call(capsys, *flags, "--dry_run", "--overwrite")
    assert code == 0, err
    assert state(folder) == before
    recipe = make_recipe_of(compress_flags(*flags, "--input_size=32"))
    begin(recipe, phantom, folder, tmp_path / "start.keras", overwrite=True)
    weights = [json.loads((place / "made_from.json").read_text())["weights"] for place in (run, folder)]
    assert weights[0] != weights[1]


@pytest.mark.parametrize(
    ("flags", "trained"),
    [
        ([], (0.5, "auto", 1.0)),
        (["--recovery_epochs=0"], (0.0, "never", 1.0)),
        (["--recovery_epochs=0", "--weight_sparsity=0.5"], (0.5, "never", 1.0)),
        (["--recovery_epochs=0", "--qat=auto"], (0.0, "auto", 1.0)),
    ],
)
def test_compress_without_labels_trains_only_what_is_asked_for(flags, trained, tmp_path):
    def trains(recipe):
        return recipe.sparsity.fraction, recipe.export.qat.when, recipe.recovery.distill_weight

    recipe = make_recipe_of(compress_flags(*IMAGES, *flags))
    assert trains(recipe) == trained
    # The recipe of the run says the same when it comes back as a file.
    (tmp_path / "recipe.json").write_text(recipe.to_json())
    assert make_recipe_of(compress_flags(f"--recipe={tmp_path / 'recipe.json'}")) == recipe
    (tmp_path / "labeled.json").write_text(Recipe().to_json())
    other = make_recipe_of(compress_flags(f"--recipe={tmp_path / 'labeled.json'}", "--dataset=images", *flags))
    assert trains(other) == trained


@pytest.mark.parametrize(("verdict", "code"), [("holds", 0), ("broken", 3), ("not enough images to tell", 0)])
def test_compress_ends_with_code_3_where_agreement_is_broken(capsys, monkeypatch, tmp_path, verdict, code):
    from cxr_compress import pipeline, report

    gate = {"verdict": verdict, "holds": verdict == "holds", "reason": ""}
    monkeypatch.setattr(pipeline, "run_recipe", lambda *_, **__: {"facts": {"gate": gate}})
    monkeypatch.setattr(pipeline, "image_size", lambda _: None)
    monkeypatch.setattr(report, "render_report", lambda report: "table")
    (tmp_path / "mine.keras").write_bytes(b"PK")
    flags = [f"--keras_model_file={tmp_path / 'mine.keras'}", "--dataset=images", f"--data_dir={tmp_path}"]
    assert call(capsys, *flags, f"--output_dir={tmp_path}")[0] == code
    assert call(capsys, *flags, f"--output_dir={tmp_path}", "--force")[0] == 0


def test_compress_gate_that_was_asked_for_and_does_not_hold_ends_with_code_3(capsys, monkeypatch, tmp_path):
    from cxr_compress import pipeline, report

    verdict = {"gate": {"holds": False, "reason": ""}}
    monkeypatch.setattr(pipeline, "run_recipe", lambda *_, **__: {"facts": verdict})
    monkeypatch.setattr(report, "render_report", lambda report: "table")
    flags = ["--model=tiny_chexnet", "--dataset=phantom", f"--data_dir={tmp_path}", f"--output_dir={tmp_path}"]
    assert call(capsys, *flags, "--max_auroc_drop=0.001")[0] == 3
    assert call(capsys, *flags)[0] == 0, "not asked for: the report says it, and that is all"
    verdict["gate"]["holds"] = True
    assert call(capsys, *flags, "--max_auroc_drop=0.001")[0] == 0
    verdict["gate"] = {"holds": False, "reason": "the original is no better than chance here"}
    code, _, err = call(capsys, *flags)
    assert (code, "nothing was shown: the original is no better than chance here" in err) == (3, True)
    assert call(capsys, *flags, "--force")[0] == 0
