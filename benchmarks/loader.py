"""How fast the loader is, where its time goes, and what many shards and a late resume cost.

    python benchmarks/loader.py [--samples 1024] [--rounds 5] [--out benchmarks/results/loader.jsonl]

1. **Against a plain pipeline.** The same shards, crops of the same law, the same tokenizer, one core each, in turns:
   ours to the finished, masked and packed Batch; the plain one is WebDataset with Pillow: full decode, crop,
   antialiased bicubic and normalisation as torchvision does them, tokens padded, arrays stacked, without masks or
   packing. "plain, uint8" leaves the normalisation to the device, as ours does. Samples per second of processor time,
   so that other load on the machine does not count; median of the rounds.
2. **By stage**, on one core.
3. **By workers**, while the main process only takes the batches.
4. **Hand-off** of a batch from a worker: its tensors one by one, or one buffer.
5. **By number of shards.** Real folders of 10^2 to 10^5 files with an index of 1000 samples a shard: time and memory
   (above the imports) of a fresh process from the experiment to the places of its first global batch.
6. **Resume** at step 10 and at step 10,000,000: seconds to the first batch.
"""

import argparse
import io
import itertools
import json
import os
import subprocess
import sys
import tarfile
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

os.environ.update(OMP_NUM_THREADS="1", TOKENIZERS_PARALLELISM="false")

import numpy as np
import torch
import webdataset
from decoders import picture, provenance
from PIL import Image
from torch.utils.data import DataLoader, Dataset

from m3ae_scale.batch import Batch, map_tensors
from m3ae_scale.config import AugmentConfig, Experiment
from m3ae_scale.data.augment import crop, extract_patches, largest_shrink, random_crop, resize
from m3ae_scale.data.decode import open_image
from m3ae_scale.data.handoff import unwrap, wrap
from m3ae_scale.data.index import INDEX_NAME
from m3ae_scale.data.index_file import SHARD, IndexWriter
from m3ae_scale.data.loader import open_training, preflight
from m3ae_scale.data.mask import visible_mask
from m3ae_scale.data.pack import pack
from m3ae_scale.data.prepare import prepare, recipe_of
from m3ae_scale.data.rng import stream
from m3ae_scale.data.scenes.scene import draw_scene
from m3ae_scale.data.scenes.words import describe
from m3ae_scale.data.tar import SAMPLE, Listing
from m3ae_scale.data.tokenizer import load_tokenizer, train_vocabulary

MICRO = 64
Row = dict[str, Any]


def caption(number: int) -> str:
    """A truthful caption of some scene, about as long as those of the web."""
    return describe(draw_scene(stream(number)), stream(number))


def make_data(folder: Path, samples: int, width: int, height: int) -> Experiment:
    """Shards of 256 pairs with photograph-like JPEGs, and an experiment that reads them at 256 pixels."""
    folder.mkdir()
    pictures = [picture(width, height, seed) for seed in range(24)]
    for shard in range(-(-samples // 256)):
        with tarfile.open(folder / f"{shard:05d}.tar", "w") as tar:
            for number in range(256 * shard, min(samples, 256 * (shard + 1))):
                for ending, data in (("jpg", pictures[number % 24]), ("txt", caption(number).encode())):
                    info = tarfile.TarInfo(f"{number:08d}.{ending}")
                    info.size = len(data)
                    tar.addfile(info, io.BytesIO(data))
    train_vocabulary([caption(n) for n in range(500)], 2000, folder / "vocab.txt")
    return experiment(folder, folder / "vocab.txt")


def experiment(shards: Path, vocabulary: Path, global_batch: int = MICRO) -> Experiment:
    """An experiment that reads the folder."""
    return Experiment.model_validate(
        {
            "name": "loader-benchmark",
            "model": {"size": "base"},
            "data": {
                "sources": [{"name": "pairs", "shards": str(shards)}],
                "tokenizer": str(vocabulary),
                "workers": 0,
                "cache": str(shards / "cache"),
            },
            "batch": {"global": global_batch},
            "train": {"length": "1 epochs"},
            "engine": {"deepspeed": "none.json"},
        }
    )


def ours(base: Experiment, workers: int = 0, start_step: int = 0) -> Iterator[Batch]:
    """Our loader on one rank."""
    changed = base.model_copy(update={"data": base.data.model_copy(update={"workers": workers})})
    data = open_training(changed, data_rank=0, data_world=1, micro_batch=MICRO, accumulation=1, start_step=start_step)
    return iter(data)


def plain(folder: Path, base: Experiment, workers: int = 0, normalise: bool = True) -> Iterator[Any]:
    """WebDataset with Pillow: what one writes in twenty lines."""
    size, length = base.model.image_size, base.model.text_length
    tokenizer, augment = load_tokenizer(base.data.tokenizer), AugmentConfig()
    rng = np.random.default_rng(0)
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (augment.mean, augment.std))

    def transform(sample: tuple[bytes, bytes]) -> tuple[Any, Any]:
        image = Image.open(io.BytesIO(sample[0])).convert("RGB")
        box = random_crop(*image.size, augment, rng)
        edges = (box.left, box.top, box.left + box.width, box.top + box.height)
        image = image.crop(edges).resize((size, size), Image.Resampling.BICUBIC)
        pixels = np.array(image)
        if rng.random() < 0.5:
            pixels = pixels[:, ::-1]
        words = tokenizer.encode(sample[1].decode(), length)
        pixels = np.ascontiguousarray(pixels)
        if normalise:  # torchvision's ToTensor and Normalize
            pixels = ((torch.from_numpy(pixels).permute(2, 0, 1).float() / 255 - mean) / std).numpy()
        return pixels, np.pad(words, (0, length - len(words)))

    shards = sorted(str(path) for path in folder.glob("*.tar"))
    dataset = webdataset.WebDataset(shards, resampled=True, shardshuffle=False, nodesplitter=None)
    dataset = dataset.shuffle(500).to_tuple("jpg", "txt").map(transform).batched(MICRO)
    return iter(DataLoader(dataset, batch_size=None, num_workers=workers, prefetch_factor=4 if workers else None))


def rate(batches: Iterator[Any], count: int, warm: int, clock: Callable[[], float]) -> float:
    """Samples per second of the clock."""
    for _ in range(warm):
        next(batches)
    start = clock()
    for _ in range(count):
        next(batches)
    return count * MICRO / (clock() - start)


def against_plain(folder: Path, base: Experiment, rounds: int, count: int, images: str) -> list[Row]:
    """Part 1."""
    running = {
        "ours": ours(base),
        "plain": plain(folder, base),
        "plain, uint8": plain(folder, base, normalise=False),
    }
    rates: dict[str, list[float]] = {name: [] for name in running}
    for _ in range(rounds):
        for name, batches in running.items():
            rates[name].append(rate(batches, count, warm=1, clock=time.process_time))
    medians = {name: float(np.median(r)) for name, r in rates.items()}
    return [
        {
            "part": f"against a plain pipeline, one core, {images} JPEG -> 256x256",
            "pipeline": name,
            "samples_per_core_second": round(median, 1),
            "times_plain": round(median / medians["plain"], 2),
            "best_and_worst": [round(max(rates[name]), 1), round(min(rates[name]), 1)],
        }
        for name, median in medians.items()
    ]


def by_stage(base: Experiment, rounds: int) -> list[Row]:
    """Part 2: microseconds a sample."""
    data = open_training(base, data_rank=0, data_world=1, micro_batch=MICRO, accumulation=1)
    supply, recipe = data._batches.supply, recipe_of(base)
    spent: dict[str, list[float]] = {}

    def timed(stage: str, work: Callable[[], Any]) -> Any:
        start = time.process_time()
        result = work()
        spent.setdefault(stage, []).append((time.process_time() - start) / MICRO)
        return result

    size, augment = base.model.image_size, base.data.augment
    for step in range(rounds * 2):
        positions = np.arange(step * MICRO, (step + 1) * MICRO)
        places = timed("order", lambda positions=positions: supply.order.locate(positions))
        raws = timed("read", lambda places=places: [supply._read(places, j) for j in range(MICRO)])
        opened = [open_image(raw.image) for raw in raws]
        boxes = [random_crop(o.width, o.height, augment, stream(step, j, "crop")) for j, o in enumerate(opened)]
        decoded = timed(
            "decode",
            lambda raws=raws, boxes=boxes: [
                open_image(r.image).decode(largest_shrink(b, size)) for r, b in zip(raws, boxes, strict=True)
            ],
        )
        squares = timed(
            "crop and resize",
            lambda decoded=decoded, boxes=boxes: [
                resize(crop(pixels, box, shrink), size) for (pixels, shrink), box in zip(decoded, boxes, strict=True)
            ],
        )
        timed("patches", lambda squares=squares: [extract_patches(s, base.model.patch) for s in squares])
        words = timed(
            "tokenise", lambda raws=raws: [recipe.tokenizer.encode(r.text.decode(), recipe.text_length) for r in raws]
        )
        timed(
            "mask",
            lambda words=words, step=step: [
                (
                    visible_mask(base.model.patches, 0.75, stream(step, j, "image")),
                    visible_mask(len(w), 0.75, stream(step, j)),
                )
                for j, w in enumerate(words)
            ],
        )
        samples = timed("(all of prepare)", lambda raws=raws: [prepare(r, recipe, 0, True) for r in raws])
        batch = timed("pack", lambda samples=samples: pack(samples, base.loss, base.model.patch_dim))
        timed("hand-off copy", lambda batch=batch: wrap(batch))
    medians = {stage: float(np.median(times)) * 1e6 for stage, times in spent.items()}
    whole = sum(us for stage, us in medians.items() if stage != "(all of prepare)")
    return [
        {"part": "by stage, one core", "stage": stage, "us_per_sample": round(us, 1), "share": round(us / whole, 3)}
        for stage, us in medians.items()
    ]


def by_workers(folder: Path, base: Experiment, count: int) -> list[Row]:
    """Part 3."""
    rows: list[Row] = []
    for workers in (1, 2):
        for name, batches in (("ours", ours(base, workers)), ("plain", plain(folder, base, workers))):
            speed = rate(batches, count, warm=10 * workers, clock=time.perf_counter)
            rows.append(
                {"part": "by workers", "pipeline": name, "workers": workers, "samples_per_second": round(speed, 1)}
            )
            del batches
    return rows


class _Same(Dataset):
    def __init__(self, batch: Batch, as_parcel: bool):
        self.batch, self.as_parcel = batch, as_parcel

    def __getitem__(self, number: int) -> Any:
        fresh = map_tensors(self.batch, torch.clone)  # what was sent once is in shared memory already
        return wrap(fresh) if self.as_parcel else fresh


def hand_off(base: Experiment, rounds: int, count: int = 40) -> list[Row]:
    """Part 4."""
    batch = next(ours(base))
    spent: dict[str, list[float]] = {"tensor by tensor": [], "one buffer": []}
    files: dict[str, float] = {}
    for _ in range(rounds):
        for name, times in spent.items():
            as_parcel = name == "one buffer"
            loader = DataLoader(
                _Same(batch, as_parcel), batch_size=None, sampler=itertools.count(), num_workers=1, prefetch_factor=4
            )
            batches = iter(loader)
            before = len(os.listdir("/proc/self/fd"))
            held = [next(batches) for _ in range(8)]
            files[name] = (len(os.listdir("/proc/self/fd")) - before) / len(held)
            start = time.perf_counter()
            for _ in range(count):
                received = next(batches)
                if as_parcel:
                    unwrap(received)
            times.append((time.perf_counter() - start) / count)
            del batches, held
    return [
        {
            "part": "hand-off of a batch of 64",
            "way": name,
            "ms_per_batch": round(1000 * min(times), 2),
            "files_open_per_batch": round(files[name], 1),
        }
        for name, times in spent.items()
    ]


FRESH_START = """
import json, os, sys, time
from m3ae_scale.config import load_experiment
import numpy as np, torch
import m3ae_scale.data
from m3ae_scale.data.index import index_source
from m3ae_scale.data.order import Order
experiment, _ = load_experiment(sys.argv[1])
def resident():
    return int(open("/proc/self/statm").read().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 2**20
before, start, cpu = resident(), time.perf_counter(), time.process_time()
source = index_source(experiment.data.sources[0], experiment.data)
listed, cpu = time.perf_counter(), time.process_time() - cpu
order = Order([source.counts], [1.0], experiment.seed, experiment.data.lanes, experiment.data.shuffle_block)
first = order.locate(np.arange(4096))
source.entry(int(first.shard[0]), int(first.index[0]))
ready = time.perf_counter()
after = resident()
late = {}
for step in (10, 10_000_000):
    fresh = Order([source.counts], [1.0], experiment.seed, experiment.data.lanes, experiment.data.shuffle_block)
    begin = time.perf_counter()
    fresh.locate(np.arange(step * 4096, (step + 1) * 4096))
    late[step] = round(1000 * (time.perf_counter() - begin), 1)
print(json.dumps({"index_s": round(listed - start, 2), "of_it_processor_s": round(cpu, 2),
                  "order_s": round(ready - listed, 3),
                  "memory_mib": round(after - before, 1), "samples": int(source.counts.sum()),
                  "ms_to_step_10": late[10], "ms_to_step_10000000": late[10_000_000]}))
"""


def synthetic_shards(folder: Path, shards: int) -> None:
    """Empty files and an index that says each has 1000 samples; all share one block of rows in it."""
    folder.mkdir()
    rows = np.zeros(1000, dtype=SAMPLE)
    rows["image_block"], rows["image_bytes"], rows["text_block"], rows["text_bytes"] = 1, 50_000, 100, 60
    rows["key_end"] = 9 * np.arange(1, 1001)
    listing = Listing(rows, b"000000000" * 1000, "")
    with (folder / INDEX_NAME).open("wb") as out:
        writer = IndexWriter(out)
        for number in range(shards):
            path = folder / f"{number:06d}.tar"
            path.touch()
            state = path.stat()
            if number == 0:
                writer.add(path.name, 0, state.st_mtime_ns, listing)
            else:
                row = dict(zip(SHARD.names, writer.rows[0], strict=True)) | {"mtime_ns": state.st_mtime_ns}
                writer.rows.append(tuple(row.values()))
                writer.names.append(path.name)
                writer.damages.append("")
        writer.finish()


def by_shards(folder: Path, vocabulary: Path) -> list[Row]:
    """Part 5, and the arithmetic of part 6."""
    from m3ae_scale.config import save_experiment

    rows: list[Row] = []
    for shards in (100, 1_000, 10_000, 100_000):
        synthetic_shards(folder / str(shards), shards)
        save_experiment(experiment(folder / str(shards), vocabulary), folder / "experiment.yaml")
        command = [sys.executable, "-c", FRESH_START, str(folder / "experiment.yaml")]
        done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=Path(__file__).parents[1])
        rows.append({"part": "by number of shards", "shards": shards, **json.loads(done.stdout)})
    return rows


def resume(base: Experiment, rounds: int) -> list[Row]:
    """Part 6: the whole way from the experiment to the first batch of 64."""
    seconds: dict[int, list[float]] = {10: [], 10_000_000: []}
    for _ in range(rounds):
        for step, times in seconds.items():
            start = time.perf_counter()
            next(ours(base, start_step=step))
            times.append(time.perf_counter() - start)
    return [
        {"part": "resume", "step": step, "s_to_first_batch": round(float(np.median(times)), 3)}
        for step, times in seconds.items()
    ]


def main() -> None:
    """Measure, print, append JSON lines."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--samples", type=int, default=1024)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "loader.jsonl")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    source = provenance() | {"micro_batch": MICRO, "cores": os.cpu_count(), "load": os.getloadavg()[0]}
    print(f"{source['cores']} cores of {source['processor']}; {source['versions']}")
    rows: list[Row] = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        base = make_data(folder / "real", arguments.samples, 640, 480)
        large = make_data(folder / "large", arguments.samples // 4, 1200, 900)
        preflight(base)
        preflight(large)
        for part in (
            lambda: against_plain(folder / "real", base, arguments.rounds, 6, "640x480"),
            lambda: against_plain(folder / "large", large, arguments.rounds, 3, "1200x900"),
            lambda: by_stage(base, arguments.rounds),
            lambda: by_workers(folder / "real", base, 30),
            lambda: hand_off(base, arguments.rounds),
            lambda: resume(base, arguments.rounds),
            lambda: by_shards(folder, folder / "real" / "vocab.txt"),
        ):
            found = part()
            print(f"\n{found[0]['part']}")
            columns = [column for column in found[0] if column != "part"]
            print("".join(f"{column:>26}" for column in columns))
            for row in found:
                print("".join(f"{row[column]!s:>26}" for column in columns))
            rows += found
    arguments.out.parent.mkdir(exist_ok=True)
    with arguments.out.open("a") as out:
        out.writelines(json.dumps({**row, **source}) + "\n" for row in rows)


if __name__ == "__main__":
    main()
