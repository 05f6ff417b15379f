"""Training steps of m3ae_scale and of other implementations, in turns: the same model, batch and caption lengths.

    python benchmarks/peers.py --m3ae-public CHECKOUT --mae CHECKOUT --hf [--encoder 384,12,6] [--micro-batch 4]

Each peer is a process of its own (benchmarks/peers/), ready before the clock starts; then they take turns, a few steps
each, in a new order every round, while the others sleep. A ratio is that of the two times of one round; its median over
the rounds is printed, with the lowest and highest, so that other load on the machine shows. `--only ablation` compares
our own choices, each alone beside ours as it is (memory for two, not eleven), `--only cost` DeepSpeed ZeRO-1 at
one rank with a bare torch loop of the same model.
--jax-python names the interpreter that has jax and flax; --hf-path a folder with transformers or timm, where those are
not installed beside torch. On a GPU: --device cuda --precision bf16, and again with fp32.
"""

import argparse
import contextlib
import json
import os
import random
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

from m3ae_scale.bench.results import append_row
from m3ae_scale.bench.synthetic import samples
from m3ae_scale.config import AugmentConfig, ModelConfig

HERE = Path(__file__).parent / "peers"
VOCABULARY = 30522
OURS = "m3ae_scale"
# What parallel/host_memory.py does for ours, for any program on glibc.
KEEP_MEMORY = {"MALLOC_MMAP_MAX_": "0", "MALLOC_TRIM_THRESHOLD_": "100000000000"}


class Peer:
    """A running peer that takes steps when asked."""

    def __init__(self, name: str, script: str, task: dict[str, Any], python: str, path: str | None):
        self.name = name
        environment = os.environ | {"OMP_NUM_THREADS": str(task["threads"]), "JAX_PLATFORMS": task["device"]}
        if path:
            environment["PYTHONPATH"] = path
        if task.get("keep_memory"):
            environment |= KEEP_MEMORY
        if task["device"] == "cpu" and script == "m3ae_public.py":
            environment["XLA_FLAGS"] = f"--xla_cpu_multi_thread_eigen={'true' if task['threads'] > 1 else 'false'}"
        self.log = tempfile.TemporaryFile("w+")  # noqa: SIM115 (lives as long as the peer)
        self.process = subprocess.Popen(
            [python, str(HERE / script), json.dumps(task)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self.log,
            env=environment,
            text=True,
        )
        self.info = self._read()

    def steps(self, count: int) -> list[float]:
        """Take `count` steps; returns their seconds."""
        assert self.process.stdin is not None
        with contextlib.suppress(BrokenPipeError):  # it ended: _read says so
            self.process.stdin.write(f"{count}\n")
            self.process.stdin.flush()
        return self._read()

    def end(self) -> None:
        """Let the process go."""
        self.process.kill()
        self.process.wait()

    def _read(self) -> Any:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            if line.startswith(("{", "[")) and line.rstrip().endswith(("}", "]")):
                try:
                    return json.loads(line)
                except json.JSONDecodeError:
                    continue
        self.log.seek(0)
        code = self.process.wait()
        killed = " (killed: is there memory for all of them?)" if code < 0 else ""
        raise RuntimeError(f"{self.name} ended with {code}{killed}:\n{self.log.read()[-2000:]}")


def write_data(path: Path, model: ModelConfig, micro_batch: int, count: int, text: bool) -> list[float]:
    """Write the batches as padded arrays, the same samples as ours are packed from; returns the mean caption length."""
    augment, arrays, lengths = AugmentConfig(), {"count": np.array(count)}, []
    mean, std = (np.array(values, np.float32) for values in (augment.mean, augment.std))
    side, patch = model.grid, model.patch
    for number in range(count):
        made = samples(model, VOCABULARY, micro_batch, text=text, seed=number)
        pixels = np.stack([s.patches for s in made]).reshape(micro_batch, side, side, patch, patch, 3)
        image = pixels.transpose(0, 1, 3, 2, 4, 5).reshape(micro_batch, side * patch, side * patch, 3)
        words = np.zeros((micro_batch, model.text_length), np.int32)
        padding = np.ones((micro_batch, model.text_length), np.float32)
        for row, sample in enumerate(made):
            if sample.words is not None:
                words[row, : len(sample.words)], padding[row, : len(sample.words)] = sample.words, 0.0
                lengths.append(len(sample.words))
        arrays |= {
            f"image{number}": ((image / np.float32(255) - mean) / std).astype(np.float32),
            f"text{number}": words,
            f"padding{number}": padding,
        }
    np.savez(path, **arrays)
    return lengths


def contenders(options: argparse.Namespace, task: dict[str, Any]) -> list[tuple[str, str, dict[str, Any], str, Any]]:
    """List who takes part, ours first: name, script, task, interpreter and PYTHONPATH."""
    here, hf = sys.executable, options.hf_path
    deepspeed = task | {"how": "deepspeed"}
    if options.only == "cost":
        return [
            (OURS, "ours.py", deepspeed, here, None),
            ("bare torch loop", "ours.py", task | {"how": "bare"}, here, None),
        ]
    if options.only == "ablation":
        changes: dict[str, dict[str, Any]] = {
            "no packing": {"fill_up": True},
            "heads on all tokens": {"score_all": True},
            "no packing, heads on all tokens": {"fill_up": True, "score_all": True},
            "text loss: all logits at once": {"kernels": {"text_loss": "plain"}},
            "text loss: torch's": {"kernels": {"text_loss": "torch"}},
            "attention: sample by sample": {"kernels": {"attention": "reference"}},
            "freed memory given back": {"malloc": "default"},
            "blocks compiled": {"kernels": {"compile": "blocks"}},
            "recompute full": {"recompute": "full"},
            "recompute selective": {"recompute": "selective"},
        }
        ours = [(OURS, "ours.py", deepspeed, here, None)]
        return ours + [(name, "ours.py", deepspeed | change, here, None) for name, change in changes.items()]
    found = [
        (OURS, "ours.py", deepspeed, here, None),
        ("bare torch loop", "ours.py", task | {"how": "bare"}, here, None),
        ("dense torch", "dense_torch.py", task, here, None),
    ]
    if options.m3ae_public:
        checkout = task | {"checkout": options.m3ae_public}
        found.append(("m3ae_public (JAX)", "m3ae_public.py", checkout, options.jax_python, None))
    if not task["text"]:
        if options.mae:
            found.append(("facebookresearch/mae", "mae.py", task | {"checkout": options.mae}, here, hf))
        if options.hf:
            found.append(("Hugging Face ViTMAE", "hf_vitmae.py", task, here, hf))
    return found


def main() -> None:
    """Run the peers in turns, print the ratios and append a row each."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--m3ae-public", help="checkout of young-geng/m3ae_public")
    parser.add_argument("--mae", help="checkout of facebookresearch/mae")
    parser.add_argument("--hf", action="store_true", help="take Hugging Face's ViTMAE in (images alone)")
    parser.add_argument("--jax-python", default=sys.executable)
    parser.add_argument("--hf-path")
    parser.add_argument("--only", choices=["peers", "cost", "ablation"], default="peers")
    parser.add_argument("--images-alone", action="store_true")
    parser.add_argument(
        "--keep-memory", action="store_true", help="let all keep the memory that they free, as ours does"
    )
    parser.add_argument("--encoder", default="384,12,6", help="dim,depth,heads")
    parser.add_argument("--decoder", default="512,8,16")
    parser.add_argument("--image", type=int, default=256)
    parser.add_argument("--micro-batch", type=int, default=4)
    parser.add_argument("--batches", type=int, default=4, help="different micro-batches, taken in turn")
    parser.add_argument("--precision", choices=["fp32", "bf16"], default="fp32")
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=6)
    parser.add_argument("--steps", type=int, default=2, help="of each peer in a round")
    parser.add_argument("--out", default="benchmarks/results/peers.jsonl")
    options = parser.parse_args()

    encoder, decoder = ([int(n) for n in getattr(options, key).split(",")] for key in ("encoder", "decoder"))
    towers = {
        name: dict(zip(("dim", "depth", "heads", "mlp_dim"), (*shape, 4 * shape[0]), strict=True))
        for name, shape in (("encoder", encoder), ("decoder", decoder))
    }
    model = ModelConfig.model_validate(towers | {"image_size": options.image})
    text = not options.images_alone
    with tempfile.TemporaryDirectory() as folder:
        data = Path(folder) / "data.npz"
        lengths = write_data(data, model, options.micro_batch, options.batches, text)
        task = {
            "data": str(data), "encoder": encoder, "decoder": decoder, "image": options.image, "patch": model.patch,
            "vocabulary": VOCABULARY, "precision": options.precision, "device": options.device, "text": text,
            "threads": options.threads, "micro_batch": options.micro_batch, "batches": options.batches,
            "keep_memory": options.keep_memory,
        }  # fmt: skip
        ours, *others = contenders(options, task)
        together = [[ours, other] for other in others] if options.only == "ablation" else [[ours, *others]]
        measured: list[tuple[Peer, list[float], list[float]]] = []
        for wanted in together:
            peers = start(wanted)
            if len(peers) > 1:  # alone, ours has nothing to be held against
                times = take_turns(peers, options.rounds, options.steps)
                # Ours once: beside each of the others it is the same program.
                measured += [(peer, times[peer.name], times[OURS]) for peer in (peers[1:] if measured else peers)]
            for peer in peers:
                peer.end()
    cell = {key: value for key, value in task.items() if key != "data"} | {"only": options.only}
    print(f"\n{options.only}: {cell}\n\n| | s a step | times the time of {OURS} (lowest to highest) |\n|---|---|---|")
    for peer, theirs, ours_beside in measured:
        ratios = sorted(their / our for their, our in zip(theirs, ours_beside, strict=True))
        values = {
            "seconds_per_step": statistics.median(theirs),
            "samples_per_second": options.micro_batch / statistics.median(theirs),
            "times_ours": statistics.median(ratios),
            "times_ours_lowest": ratios[0],
            "times_ours_highest": ratios[-1],
            "rounds": options.rounds,
            "mean_caption": statistics.mean(lengths) if lengths else None,
            "load_average": os.getloadavg()[0],
            "info": peer.info,
        }
        append_row(options.out, "peers", cell | {"peer": peer.name}, values)
        low, high = values["times_ours_lowest"], values["times_ours_highest"]
        print(
            f"| {peer.name} | {values['seconds_per_step']:.3f} | {values['times_ours']:.2f} ({low:.2f} to {high:.2f}) |"
        )


def start(wanted: list[tuple[str, str, dict[str, Any], str, Any]]) -> list[Peer]:
    """Start them one after the other; who cannot start is named and left out, but ours must."""
    peers = []
    for name, script, task, python, path in wanted:
        print(f"starting {name}", flush=True)
        try:
            peers.append(Peer(name, script, task, python, path))
        except RuntimeError as error:
            if name == OURS:
                raise
            print(f"left out: {error}", flush=True)
    return peers


def take_turns(peers: list[Peer], rounds: int, steps: int) -> dict[str, list[float]]:
    """Seconds a step of each peer in each round."""
    times: dict[str, list[float]] = {peer.name: [] for peer in peers}
    order = random.Random(0)
    for number in range(rounds):
        for peer in order.sample(peers, len(peers)):
            times[peer.name].append(statistics.mean(peer.steps(steps)))
        print(f"round {number + 1} of {rounds}", flush=True)
    return times


if __name__ == "__main__":
    main()
