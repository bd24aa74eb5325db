r"""Whether reading images ever limits training: images/s of decoding, of the cache and of the networks, in one run.

Command:  python experiments/bench_data.py
Time:     about 6 minutes on two cores, nearly all of it training steps.
Result:   experiments/results/bench_data.json; the bars are, for each network, that one core delivers augmented and
          normalized batches from the cache at twice the speed of training, and that training fed by the cache runs at
          0.9 or more of the speed of training on one batch that lies ready in memory.

Measured turn by turn in several rounds, medians reported; the ratios hold where single speeds drift with the machine.

- decode: drawn images of 1,024 px as JPEG, PNG and (with pydicom) DICOM, by one thread, by a thread per core and by a
  process per core; the last two are why ``data.decoding`` uses threads.
- input, one core: rows of the memory map; the same normalized; the same augmented and normalized, as training has it.
- networks: training step and inference on a batch in memory, and training fed by ``train.batches.ahead``.

The cached images lie in the system's page cache meanwhile; a disk must bring 50 KB an image of 224 px once per epoch
where memory is too small for that. For a consumer faster than these cores, a GPU:
``cores_to_feed_1000_images_per_second`` says how many cores the cache needs, and how many each decoder would.
"""

from __future__ import annotations

import contextlib
import json
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Executor, ProcessPoolExecutor, ThreadPoolExecutor
from functools import partial
from itertools import islice
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from absl import app, flags

from cxr_compress.data.cache import decode_split
from cxr_compress.data.readers.phantom import render_image
from cxr_compress.data.splits import Split
from cxr_compress.device.preprocess import PreprocessSpec, load_uint8, normalize
from cxr_compress.files import write_bytes, write_text

RESULTS = Path(__file__).parent / "results"
TWICE, NEARLY = 2.0, 0.9
_CONSUMER = 1000

_SMOKE = flags.DEFINE_boolean("smoke", False, "Small images, tiny_chexnet, one round: checks the script, no speeds.")
_SIZE = flags.DEFINE_integer("size", 224, "Pixels of the cached images and the networks' input.")
_ROUNDS = flags.DEFINE_integer("rounds", 5, "Timed rounds of everything.")
_BATCH = flags.DEFINE_integer("batch_size", 16, "Images per training step.")
_SECONDS = flags.DEFINE_integer("seconds", 10, "About how long a network trains per round; at most one epoch.")

Work = Callable[[], int]  # does something, and says with how many images


def main(_: list[str]) -> None:
    """Measure, print and write the results."""
    smoke = _SMOKE.value
    size, source, rounds = (32, 128, 1) if smoke else (_SIZE.value, 1024, _ROUNDS.value)
    with tempfile.TemporaryDirectory() as folder, contextlib.ExitStack() as pools:
        files = write_images(Path(folder), source, 4 if smoke else 24)
        images, build = build_cache(files["png"], PreprocessSpec(size, size), Path(folder), 64 if smoke else 1024)
        decode = rates(decode_works(files, size, pools, repeats=1 if smoke else 4), rounds)
        inputs = rates(input_works(images, size), rounds)
        networks = {name: measure_network(name, images, size, rounds) for name in network_names()}
    result = summarize(decode, inputs, networks) | {"cache_build_images_per_second": build}
    result |= {"size": size, "source_size": source, "batch_size": _BATCH.value, "cores": os.cpu_count()}
    print(json.dumps(result, indent=2))
    if not smoke:
        RESULTS.mkdir(exist_ok=True)
        write_text(RESULTS / "bench_data.json", json.dumps(result, indent=2) + "\n")
        check(result["networks"])


def write_images(folder: Path, size: int, count: int) -> dict[str, list[Path]]:
    """Drawn images of their usual size in every format there is a decoder for."""
    pictures = [render_image(0, patient, 0, (), size=size) for patient in range(count)]
    files: dict[str, list[Path]] = {}
    for kind, options in {"jpeg": [cv2.IMWRITE_JPEG_QUALITY, 95], "png": []}.items():
        files[kind] = [folder / f"{number}.{kind}" for number in range(count)]
        for picture, path in zip(pictures, files[kind], strict=True):
            write_bytes(path, cv2.imencode(path.suffix, picture, options)[1].tobytes())
    with contextlib.suppress(ModuleNotFoundError):
        files["dicom"] = [write_dicom(picture, folder / f"{number}.dcm") for number, picture in enumerate(pictures)]
    return files


def write_dicom(picture: np.ndarray, path: Path) -> Path:
    """One image as an uncompressed 12-bit DICOM, as a digital detector sends it."""
    from pydicom.dataset import Dataset, FileMetaDataset
    from pydicom.uid import DigitalXRayImageStorageForPresentation, ExplicitVRLittleEndian, generate_uid

    dataset = Dataset()
    dataset.file_meta = FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    dataset.file_meta.MediaStorageSOPClassUID = dataset.SOPClassUID = DigitalXRayImageStorageForPresentation
    dataset.file_meta.MediaStorageSOPInstanceUID = dataset.SOPInstanceUID = generate_uid(entropy_srcs=[path.name])
    dataset.PhotometricInterpretation, dataset.SamplesPerPixel, dataset.PixelRepresentation = "MONOCHROME2", 1, 0
    dataset.Rows, dataset.Columns = picture.shape
    dataset.BitsAllocated, dataset.BitsStored, dataset.HighBit = 16, 12, 11
    dataset.WindowCenter, dataset.WindowWidth = 2048, 4096
    dataset.PixelData = (picture.astype("<u2") * 16).tobytes()
    dataset.save_as(path, enforce_file_format=True)
    return path


def build_cache(files: Sequence[Path], spec: PreprocessSpec, folder: Path, count: int) -> tuple[np.ndarray, float]:
    """A memory-mapped cache of `count` images, and images/s of building it, disk included."""
    paths = tuple(files[number % len(files)] for number in range(count))
    split = Split("train", paths, np.zeros((count, 1), np.float32), tuple(map(str, range(count))))
    started = time.perf_counter()
    images = decode_split(split, spec, cache_dir=folder / "cache")
    return images, round(count / (time.perf_counter() - started), 1)


def decode_works(
    files: dict[str, list[Path]], size: int, pools: contextlib.ExitStack, *, repeats: int
) -> dict[str, Work]:
    """Each format by one thread, a thread per core, a process per core."""
    cores = os.cpu_count() or 1
    # Spawned: TensorFlow's threads do not survive a fork.
    workers: dict[str, Executor] = {
        "one_thread": pools.enter_context(ThreadPoolExecutor(1)),
        "threads": pools.enter_context(ThreadPoolExecutor(cores)),
        "processes": pools.enter_context(ProcessPoolExecutor(cores, mp_context=get_context("spawn"))),
    }
    works: dict[str, Work] = {}
    for kind, paths in files.items():
        tasks = [paths[start : start + 4] for start in range(0, len(paths), 4)] * repeats
        for name, pool in workers.items():
            works[f"{kind}_{name}"] = partial(decode_all, pool, tasks, size)
    return works


def decode_all(pool: Executor, tasks: list[list[Path]], size: int) -> int:
    """Decode every task's images with the pool; how many they were."""
    return sum(pool.map(partial(decode_some, size), tasks))


def decode_some(size: int, paths: list[Path]) -> int:
    """One task; a function of the module, so that another process can be sent it."""
    spec = PreprocessSpec(size, size)
    return sum(load_uint8(path, spec).shape == (size, size) for path in paths)


def input_works(images: np.ndarray, size: int) -> dict[str, Work]:
    """What one core can deliver from the cache, step by step."""
    spec = PreprocessSpec(size, size)
    order = np.random.default_rng(0).permutation(len(images))
    chosen = [order[start : start + 16] for start in range(0, len(order), 16)]
    return {
        "cache_rows": lambda: sum(len(images[rows]) for rows in chosen),
        "cache_normalized": lambda: sum(len(normalize(images[rows], spec)) for rows in chosen),
        "cache_augmented": lambda: sum(len(pictures) for pictures, _ in iterate(batches_of(images, size))),
    }


def batches_of(images: np.ndarray, size: int) -> Any:
    """An epoch as training sees it."""
    from cxr_compress.train import Batches

    labels = np.arange(len(images), dtype=np.float32)[:, np.newaxis] % 2
    return Batches(images, labels, PreprocessSpec(size, size), _BATCH.value)


def iterate(batches: Any) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """All batches, prepared by the thread that asks for them."""
    return (batches[index] for index in range(len(batches)))


def network_names() -> list[str]:
    """The networks that are measured."""
    return ["tiny_chexnet"] if _SMOKE.value else ["tiny_chexnet", "chexnet"]


def measure_network(name: str, images: np.ndarray, size: int, rounds: int) -> dict[str, float]:
    """Images/s of training and inference on a batch in memory, and of training fed by the cache."""
    from cxr_compress import models
    from cxr_compress.train.batches import ahead
    from cxr_compress.train.config import FitConfig
    from cxr_compress.train.losses import WeightedBce
    from cxr_compress.train.step import Objective, make_forward, make_optimizer, make_train_step

    model = getattr(models, name)(1, (size, size, 3))
    optimizer = make_optimizer(FitConfig(epochs=1), steps=1000)
    step = make_train_step(model, Objective(WeightedBce(np.ones(1, np.float32))), optimizer)
    forward = make_forward(model)
    ready = batches_of(images, size)[0]
    steps = 2 if _SMOKE.value else steps_of(lambda: step(*ready), len(batches_of(images, size)))

    def in_memory() -> int:
        return sum(len(pictures) for pictures, labels in [ready] * steps if float(step(pictures, labels)) >= 0)

    def fed() -> int:
        with contextlib.closing(ahead(batches_of(images, size))) as stream:
            return sum(
                len(pictures) for pictures, labels in islice(stream, steps) if float(step(pictures, labels)) >= 0
            )

    def inference() -> int:
        return sum(len(forward(ready[0])) for _ in range(steps))

    return rates({"training_in_memory": in_memory, "training_from_cache": fed, "inference": inference}, rounds)


def steps_of(step: Callable[[], Any], epoch: int) -> int:
    """Steps that take --seconds: a thread starts once an epoch, and must not weigh more here than it does there."""
    step()  # traces
    started = time.perf_counter()
    float(step())
    return max(2, min(epoch, round(_SECONDS.value / (time.perf_counter() - started))))


def rates(works: dict[str, Work], rounds: int) -> dict[str, float]:
    """Images/s of each, the median over rounds in which each has its turn; a first round is not counted."""
    found: dict[str, list[float]] = {name: [] for name in works}
    for number in range(rounds + 1):
        for name, work in works.items():
            started = time.perf_counter()
            pictures = work()
            if number:
                found[name].append(pictures / (time.perf_counter() - started))
    return {name: round(statistics.median(values), 1) for name, values in found.items()}


def summarize(
    decode: dict[str, float], inputs: dict[str, float], networks: dict[str, dict[str, float]]
) -> dict[str, Any]:
    """All speeds, and the ratios that the claim rests on."""
    kinds = [name.removesuffix("_one_thread") for name in decode if name.endswith("_one_thread")]
    per_core = {"cache_augmented": inputs["cache_augmented"]}
    per_core |= {f"decode_{kind}": decode[f"{kind}_one_thread"] for kind in kinds}
    for speeds in networks.values():
        training = speeds["training_in_memory"]
        speeds["input_of_one_core_over_training"] = round(inputs["cache_augmented"] / training, 2)
        speeds["input_of_one_core_over_inference"] = round(inputs["cache_normalized"] / speeds["inference"], 2)
        speeds["fed_over_in_memory"] = round(speeds["training_from_cache"] / training, 3)
    return {
        "decode_images_per_second": decode,
        "threads_over_processes": {k: round(decode[f"{k}_threads"] / decode[f"{k}_processes"], 2) for k in kinds},
        "input_images_per_second_of_one_core": inputs,
        "cores_to_feed_1000_images_per_second": {k: round(_CONSUMER / speed, 2) for k, speed in per_core.items()},
        "networks": networks,
    }


def check(networks: dict[str, dict[str, float]]) -> None:
    """Stop with an error where the claim does not hold."""
    broken = [
        name
        for name, speeds in networks.items()
        if speeds["input_of_one_core_over_training"] < TWICE or speeds["fed_over_in_memory"] < NEARLY
    ]
    if broken:
        raise SystemExit(f"bench_data: reading images limits the training of {', '.join(broken)}")


if __name__ == "__main__":
    app.run(main)
