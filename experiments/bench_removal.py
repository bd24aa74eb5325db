r"""Removing 30 % of the filters of DenseNet121 and DenseNet201: seconds and memory, beside Torch-Pruning.

Command:  python experiments/bench_removal.py --torch_env=DIR   (makes the environment in DIR, or takes the one there)
          python experiments/bench_removal.py --torch_python=PATH   (a Python with torch and torch-pruning)
          python experiments/bench_removal.py   (our side alone)
Time:     about 10 minutes on two cores with 5 repeats; the environment takes another 1 to 5; --smoke: half a minute.
Result:   JSON on stdout and in experiments/results/bench_removal.json, and a line on stderr for each bar, with an error
          at the end where one is missed: DenseNet121 at most 15 s, DenseNet201 at most 28 s and not slower than
          Torch-Pruning, analysis at most 0.2 s (DenseNet121) and a tenth of its graph build, peak under 3 GiB.

Both systems start from a built network of the same architecture (14 logits, random weights, 224 px; the parameters
are counted alike and must be equal) and end with a pruned one. Our plan takes 30 % of every group of filters by l1,
rounded towards keeping, scope local; Torch-Pruning is told to keep the same number of filters in every convolution,
also by its l1, and must end with the same number of parameters. Building the network is in neither time. Ours builds
a second, pruned network and leaves the first untouched, theirs cuts the one it is given. Nearly all of our seconds are
Keras building layers; they grow with the number of layers, Torch-Pruning's grow faster than that. On DenseNet121 it is
the faster one of the two, and only on DenseNet201 is being no slower a bar.

Every measurement is the first in a fresh process, ours and theirs turn by turn; what is written are medians, of each
number for itself. Only Torch-Pruning's whole removal comes third in its process, after two graph builds of which the
first is compared with our first analysis; that favors it, as does --torch_threads=1: its work is small tensors, and
beside other programs two threads wait for each other. CPU seconds stand beside wall-clock seconds, which other programs
lengthen more. Garbage is collected before each step, outside of its time: a full collection beside TensorFlow takes
0.3 s, more than an analysis, and would fall to either side by chance. Memory is what is resident: before, after, and
the peak of the process, imports and network included.

The last part is the whole step of He 2017 on DenseNet121 at 224 px (analysis, LASSO scores, plan for half the MACs,
rebuild, least squares on the consumers, batch norms), for its peak memory alone: tensors held at once are bounded by
`memory_bytes`, so more images than fit there (about 75) only take longer. Its images are noise.
"""

from __future__ import annotations

import gc
import json
import platform
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from importlib.metadata import version
from math import ceil
from pathlib import Path
from typing import Any

from absl import app, flags

from cxr_compress.files import write_text

# The measuring process loads no TensorFlow: a new process would start with its parent's memory as its own peak.

RESULTS = Path(__file__).parent / "results"
TORCH_SIDE = Path(__file__).parent / "torch_densenet.py"
TORCH_PACKAGES = ("torch==2.13.0", "torch-pruning==1.6.1", "numpy")
NETWORKS = {"DenseNet121": (6, 12, 24, 16), "DenseNet201": (6, 12, 48, 32)}
SMOKE_NETWORKS = {"tiny": (2, 2, 2, 2)}
CLASSES = 14
SECONDS_LIMITS = {"DenseNet121": 15.0, "DenseNet201": 28.0}
ANALYSIS_LIMIT = 0.2
GRAPH_SHARE = 0.1
PEAK_LIMIT = 3 << 30

Row = dict[str, Any]


def measure_removal(blocks: tuple[int, ...], size: int, fraction: float) -> Row:
    """Analysis, l1 scores, plan and rebuild of one network, in this process."""
    from cxr_compress.models import chexnet
    from cxr_compress.structured import analyze_channels, remove_channels, score_channels, select_channels

    model = chexnet(CLASSES, (size, size, 3), blocks=blocks)
    before = resident_bytes()
    clock = Clock()
    analysis = clock.time("analysis", lambda: analyze_channels(model))
    scores = clock.time("score", lambda: score_channels(model, analysis))
    plan = clock.time(
        "plan",
        lambda: select_channels(
            analysis, scores, all_of(analysis, fraction), scope="local", round_to=1, max_removed_fraction=fraction
        ),
    )
    pruned = clock.time("rebuild", lambda: remove_channels(model, plan))
    measured = clock.total() | {"resident_before_bytes": before, "resident_after_bytes": resident_bytes()}
    measured |= {"peak_bytes": peak_bytes(), "params": model.count_params(), "pruned_params": pruned.count_params()}
    clock.time("analysis_again", lambda: analyze_channels(model))
    kept = [len(plan.kept.get(name, range(group.channels))) for name, group in analysis.groups.items()]
    return {"measured": measured | clock.seconds, "kept": kept, "versions": our_versions()}


def all_of(analysis: Any, fraction: float) -> Any:
    """The budget that is met once every group has lost its share."""
    from cxr_compress.structured import Budget

    # Rounded before the ceiling, as select_channels does: 10 * (1 - 0.9) is a little above 1.
    kept = {name: range(ceil(round(group.channels * (1 - fraction), 9))) for name, group in analysis.groups.items()}
    return Budget(macs=analysis.cost_model.cost(analysis.keep_vector(kept)).macs)


def measure_reconstruction(blocks: tuple[int, ...], size: int, count: int, round_to: int) -> Row:
    """The whole step with LASSO, reconstruction and batch norms, in this process."""
    import numpy as np

    from cxr_compress.models import chexnet
    from cxr_compress.structured import (
        Budget,
        analyze_channels,
        recalibrate_batch_norm,
        reconstruct_consumers,
        remove_channels,
        score_channels,
        select_channels,
    )

    model = chexnet(CLASSES, (size, size, 3), blocks=blocks)
    images = np.random.default_rng(0).normal(size=(count, size, size, 3)).astype(np.float32)
    batches = [images[start : start + 16] for start in range(0, count, 16)]
    # Untouched batch norms let the signal of random weights die on the way, and dead channels cost LASSO nothing.
    recalibrate_batch_norm(model, batches[:1])
    before = resident_bytes()
    clock = Clock()
    analysis = clock.time("analysis", lambda: analyze_channels(model))
    scores = clock.time("score", lambda: score_channels(model, analysis, criterion="lasso", batches=batches))
    budget = Budget(macs=0.5)
    plan = clock.time("plan", lambda: select_channels(analysis, scores, budget, scope="local", round_to=round_to))
    pruned = clock.time("rebuild", lambda: remove_channels(model, plan))
    report = clock.time("reconstruct", lambda: reconstruct_consumers(pruned, model, plan, batches))
    clock.time("recalibrate", lambda: recalibrate_batch_norm(pruned, batches))
    measured = clock.total() | clock.seconds | {"resident_before_bytes": before, "peak_bytes": peak_bytes()}
    measured |= {"images": report.images, "refitted_layers": len(report.errors)}
    return {"measured": measured, "versions": our_versions()}


class Clock:
    """Times named steps; `seconds` has them as "<name>_seconds"."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self._cpu = 0.0

    def time(self, name: str, step: Callable[[], Any]) -> Any:
        """What the step gives; it does not pay for collecting what the steps before it left behind."""
        gc.collect()
        wall, cpu = time.perf_counter(), time.process_time()
        result = step()
        self.seconds[f"{name}_seconds"] = time.perf_counter() - wall
        self._cpu += time.process_time() - cpu
        return result

    def total(self) -> dict[str, float]:
        """Seconds and CPU seconds of all steps so far."""
        return {"total_seconds": sum(self.seconds.values()), "total_cpu_seconds": self._cpu}


def peak_bytes() -> int:
    """The most memory that this process has had resident so far; Linux counts it in KiB, and now and then late."""
    return max(resident_bytes(), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024)


def resident_bytes() -> int:
    """Memory that this process has resident now."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()


def our_versions() -> dict[str, str]:
    """What our side ran with."""
    return {name: version(name) for name in ("cxr-compress", "tensorflow", "tf_keras", "numpy")}


def run_json(command: list[str]) -> Row:
    """The JSON on the last line that a process prints.

    Raises:
        SystemExit: with its own last words, if it fails.
    """
    done = subprocess.run(command, check=False, capture_output=True, text=True)
    if done.returncode:
        sys.exit(f"bench_removal: {' '.join(command[1:3])} failed: {done.stderr.strip()[-2000:]}")
    found: Row = json.loads(done.stdout.splitlines()[-1])
    return found


def part(name: str, blocks: tuple[int, ...]) -> list[str]:
    """The command that measures one part of our side in a process of its own."""
    arguments = flags.FLAGS
    command = [sys.executable, __file__, f"--part={name}", f"--blocks={','.join(map(str, blocks))}"]
    command += [f"--removed_fraction={arguments.removed_fraction}", f"--images={arguments.images}"]
    return [*command, f"--{'' if arguments.smoke else 'no'}smoke"]


def compare(networks: Mapping[str, tuple[int, ...]], repeats: int, torch_python: str) -> Row:
    """Both sides turn by turn, every network; medians."""
    arguments = flags.FLAGS
    rows: Row = {}
    for name, blocks in networks.items():
        sides: dict[str, list[Row]] = {"ours": [], "torch_pruning": []}
        for number in range(repeats):
            log(f"{name}, repeat {number + 1} of {repeats} ...")
            ours = run_json(part("removal", blocks))
            sides["ours"].append(ours)
            if torch_python:
                with tempfile.TemporaryDirectory() as folder:
                    widths = Path(folder) / "kept.json"
                    widths.write_text(json.dumps(ours["kept"]))
                    command = [torch_python, str(TORCH_SIDE), f"--kept={widths}", f"--classes={CLASSES}"]
                    command += [f"--blocks={','.join(map(str, blocks))}", f"--size={image_size()}"]
                    sides["torch_pruning"].append(run_json([*command, f"--threads={arguments.torch_threads}"]))
        rows[name] = {side: summary(found) for side, found in sides.items() if found}
        require_equal(name, rows[name])
    return rows


def summary(found: list[Row]) -> Row:
    """The median of every number over repeats; versions as the last repeat gave them."""
    numbers = {key: statistics.median([row["measured"][key] for row in found]) for key in found[0]["measured"]}
    whole_numbers = {key: int(value) for key, value in numbers.items() if not key.endswith("seconds")}
    seconds = {key: round(value, 4) for key, value in numbers.items() if key.endswith("seconds")}
    return seconds | whole_numbers | {"versions": found[-1]["versions"]}


def require_equal(name: str, sides: Row) -> None:
    """Stop unless both sides had the same network before and after."""
    for key in ("params", "pruned_params"):
        counted = {side: numbers[key] for side, numbers in sides.items()}
        if len(set(counted.values())) != 1:
            sys.exit(f"bench_removal: expected the same {name} on both sides, got {key} {counted}: no comparison")


def judge(report: Row) -> list[Row]:
    """Every bar with what was measured for it; bars whose side was not measured are left out."""
    bars: list[Row] = []

    def bar(text: str, measured: float, limit: float) -> None:
        bars.append({"bar": text, "measured": measured, "limit": limit, "passed": measured <= limit})

    for name, sides in report["networks"].items():
        ours, theirs = sides["ours"], sides.get("torch_pruning")
        if name in SECONDS_LIMITS:
            bar(f"{name}: whole removal, seconds", ours["total_seconds"], SECONDS_LIMITS[name])
        if name == "DenseNet121":
            bar(f"{name}: analysis, seconds", ours["analysis_seconds"], ANALYSIS_LIMIT)
        if theirs:
            graph = theirs["graph_seconds"]
            bar(f"{name}: analysis over their graph build", round(ours["analysis_seconds"] / graph, 4), GRAPH_SHARE)
        if theirs and name == "DenseNet201":
            bar(f"{name}: whole removal beside theirs, seconds", ours["total_seconds"], theirs["total_seconds"])
    bar("with reconstruction: peak bytes", report["whole_step_with_reconstruction_peak_bytes"], PEAK_LIMIT)
    return bars


def torch_interpreter() -> str:
    """The Python of the other side: the one given, the one in --torch_env, made there if need be, or none."""
    arguments = flags.FLAGS
    if arguments.torch_python or not arguments.torch_env:
        return str(arguments.torch_python or "")
    folder = Path(arguments.torch_env)
    python = folder / "bin" / "python"
    if not python.is_file():
        log(f"building {folder} with {', '.join(TORCH_PACKAGES)} ...")
        subprocess.run([sys.executable, "-m", "venv", str(folder)], check=True)
    # Nothing is downloaded where these versions are installed already.
    pip = [str(python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    subprocess.run([*pip, *TORCH_PACKAGES], check=True)
    return str(python)


def image_size() -> int:
    """Pixels; a smoke run takes small images."""
    return 64 if flags.FLAGS.smoke else 224


def measure_everything() -> Row:
    """The report: both networks, the whole step, versions and bars."""
    arguments = flags.FLAGS
    python = torch_interpreter()
    if not python:
        log("Torch-Pruning is left out: give --torch_env=DIR (an environment is made there) or --torch_python=PATH.")
    networks = SMOKE_NETWORKS if arguments.smoke else NETWORKS
    repeats = 1 if arguments.smoke else arguments.repeats
    rows = compare(networks, repeats, python)
    log("whole step with reconstruction ...")
    whole = summary([run_json(part("reconstruction", next(iter(networks.values()))))])
    report: Row = {
        "input_size": image_size(),
        "removed_fraction": arguments.removed_fraction,
        "repeats": repeats,
        "torch_threads": arguments.torch_threads,
        "machine": f"{platform.system()} {platform.machine()}, Python {platform.python_version()}",
        "networks": rows,
        "whole_step_with_reconstruction": whole,
        "whole_step_with_reconstruction_peak_bytes": whole["peak_bytes"],
    }
    return report | {"bars": judge(report)}


def main(_: list[str]) -> None:
    """Measure everything, or the one part that a process of this script was started for."""
    arguments = flags.FLAGS
    blocks = tuple(int(count) for count in arguments.blocks)
    if arguments.part == "removal":
        print(json.dumps(measure_removal(blocks, image_size(), arguments.removed_fraction)))
        return
    if arguments.part == "reconstruction":
        count = 8 if arguments.smoke else arguments.images
        print(json.dumps(measure_reconstruction(blocks, image_size(), count, 4 if arguments.smoke else 8)))
        return
    report = measure_everything()
    print(json.dumps(report, indent=2))
    if arguments.smoke:
        return
    path = Path(arguments.results_dir) / "bench_removal.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    write_text(path, json.dumps(report, indent=2) + "\n")
    for row in report["bars"]:
        log(f"{'reached' if row['passed'] else 'MISSED '}  {row['bar']}: {row['measured']:,} (limit {row['limit']:,})")
    missed = [row["bar"] for row in report["bars"] if not row["passed"]]
    if missed:
        sys.exit(f"bench_removal: not reached: {'; '.join(missed)}")


def log(line: str) -> None:
    """Progress goes to stderr; stdout is for the result."""
    print(line, file=sys.stderr, flush=True)


def define_flags() -> None:
    """The flags of this experiment."""
    flags.DEFINE_bool("smoke", False, "A small DenseNet at 64 px, one repeat, nothing written: checks the script.")
    flags.DEFINE_string("torch_python", None, "A Python that has torch and torch-pruning.")
    flags.DEFINE_string("torch_env", None, f"A folder for an environment with {' '.join(TORCH_PACKAGES)}.")
    flags.DEFINE_integer("torch_threads", 1, "Threads of torch.", lower_bound=1)
    flags.DEFINE_integer("repeats", 5, "Fresh processes per network and side.", lower_bound=1)
    flags.DEFINE_float("removed_fraction", 0.3, "Share of every group that goes.", lower_bound=0.0, upper_bound=0.9)
    flags.DEFINE_integer("images", 128, "Noise images for the step with reconstruction.", lower_bound=1)
    flags.DEFINE_string("results_dir", str(RESULTS), "Where the JSON goes.")
    flags.DEFINE_enum("part", None, ["removal", "reconstruction"], "Measure this alone; the script calls itself so.")
    flags.DEFINE_list("blocks", ["6", "12", "24", "16"], "Dense layers per block, for --part.")


if __name__ == "__main__":
    define_flags()
    app.run(main)
