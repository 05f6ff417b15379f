"""The loader: any topology and any number of workers give the same batches, and a resume goes on exactly."""

import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

import pytest
import torch
from made_shards import experiment, sample_members, write_shards, write_tar

import m3ae_scale
from m3ae_scale.batch import Batch
from m3ae_scale.config import Experiment, save_experiment
from m3ae_scale.data import loader, workers
from m3ae_scale.data.loader import TrainingData, open_training, open_validation, preflight, tokens_per_sample
from m3ae_scale.data.workers import begin_worker
from m3ae_scale.errors import InputError

B = 24  # global batch: divides by every world size below
STEPS = 5


@pytest.fixture(scope="module")
def mixture(tmp_path_factory: pytest.TempPathFactory) -> Experiment:
    """Pairs, images and texts in uneven shards, with pairs that drop a half."""
    folder = tmp_path_factory.mktemp("mixture")
    sources = [
        {"name": "pairs", "weight": 2, "image_drop": 0.1, "text_drop": 0.2},
        {"name": "pictures", "kind": "image", "weight": 1},
        {"name": "words", "kind": "text", "weight": 0.5},
    ]
    for source, counts in zip(sources, ([17, 3, 30], [11, 9], [25]), strict=True):
        source["shards"] = str(write_shards(folder / str(source["name"]), counts, str(source.get("kind", "paired"))))
    return experiment(folder, sources, B)


def with_workers(base: Experiment, workers: int) -> Experiment:
    return base.model_copy(update={"data": base.data.model_copy(update={"workers": workers})})


def contents(batch: Batch) -> Iterator[tuple[str, bytes]]:
    """Each sample with what the model will see of it: pixels, words and masks."""
    decoder, encoder = batch.decoder, batch.encoder
    for i, key in enumerate(batch.keys):
        seen = encoder.sample == i
        whole = decoder.sample == i
        targets = batch.image_targets.sample == i
        predicted_words = batch.words[batch.text_targets.token[batch.text_targets.sample == i]]
        parts = [
            encoder.modality[seen], encoder.position[seen], decoder.modality[whole],
            batch.patches[batch.image_targets.token[targets]], predicted_words, batch.sample_seed[i],
        ]  # fmt: skip
        yield key, b"".join(part.numpy().tobytes() for part in parts)


def run(
    base: Experiment, world: int, start: int = 0, stop: int = STEPS, accumulation: int = 1, by_tokens: bool = False
) -> list[dict[str, bytes]]:
    """The global batch of each step, put together from all ranks."""
    steps: list[dict[str, bytes]] = [{} for _ in range(start, stop)]
    for rank in range(world):
        micro = None if by_tokens else B // world // accumulation
        data = open_training(
            base, data_rank=rank, data_world=world, micro_batch=micro, accumulation=accumulation, start_step=start
        )
        for number, batch in enumerate(islice(data, (stop - start) * accumulation)):
            assert by_tokens or batch.samples == micro
            for key, seen in contents(batch):
                step = steps[number // accumulation]
                # A small source may come round twice in one batch, in two epochs.
                step[key if key not in step else key + "'"] = seen
    return steps


@pytest.fixture(scope="module")
def reference(mixture: Experiment) -> list[dict[str, bytes]]:
    steps = run(mixture, world=1)
    assert all(len(step) == B for step in steps)
    return steps


def same(a: list[dict[str, bytes]], b: list[dict[str, bytes]]) -> bool:
    return [(sorted(s), sorted(s.values())) for s in a] == [(sorted(s), sorted(s.values())) for s in b]


@pytest.mark.parametrize(("world", "accumulation"), [(2, 1), (3, 2), (4, 3), (6, 1), (8, 3)])
def test_every_topology_sees_the_same_batches(
    mixture: Experiment, reference: list[dict[str, bytes]], world: int, accumulation: int
) -> None:
    assert same(run(mixture, world, accumulation=accumulation), reference)


@pytest.mark.parametrize(("world", "accumulation"), [(1, 4), (2, 3), (5, 1), (7, 2)])
def test_dealing_by_tokens_keeps_the_global_batch(
    mixture: Experiment, reference: list[dict[str, bytes]], world: int, accumulation: int
) -> None:
    assert same(run(mixture, world, accumulation=accumulation, by_tokens=True), reference)


@pytest.mark.filterwarnings("ignore:This DataLoader will create 3 worker")
@pytest.mark.parametrize("workers", [1, 2, 3])
def test_workers_do_not_change_the_sequence(mixture: Experiment, workers: int) -> None:
    def keys(count: int) -> list[tuple[str, ...]]:
        data = open_training(with_workers(mixture, count), data_rank=1, data_world=2, micro_batch=4, accumulation=3)
        return [batch.keys for batch in islice(data, 9)]

    assert keys(workers) == keys(0)


@pytest.mark.parametrize(("stop", "world"), [(1, 3), (2, 1), (4, 2)])
def test_a_resume_on_other_ranks_goes_on_exactly(
    mixture: Experiment, reference: list[dict[str, bytes]], stop: int, world: int
) -> None:
    assert same(run(mixture, world, start=stop), reference[stop:])


def first(base: Experiment, **options: object) -> TrainingData:
    return open_training(base, data_rank=0, data_world=1, micro_batch=base.batch.global_, accumulation=1, **options)


def test_a_resume_with_another_global_batch_goes_on_at_the_next_sample(mixture: Experiment) -> None:
    whole = [key for batch in islice(first(mixture), 4) for key in batch.keys]
    state = first(mixture).state(2)
    halved = mixture.model_copy(update={"batch": mixture.batch.model_copy(update={"global_": B // 2})})
    data = first(halved, resume=state)
    assert [key for batch in islice(data, 4) for key in batch.keys] == whole[2 * B :]
    assert data.state(6)["position"] == 2 * B + 4 * B // 2


def test_the_state_is_small_and_json(mixture: Experiment) -> None:
    import json

    state = first(mixture).state(10_000_000)
    assert state["position"] == 10_000_000 * B
    assert len(json.dumps(state)) < 1000
    assert json.loads(json.dumps(state)) == state


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"seed": 43}, "seed: found 43, the checkpoint has 42"),
        ({"lanes": 8}, "data.lanes: found 8, the checkpoint has 24"),
        ({"weight": 7.0}, "data source pairs: weight: found 7.0, the checkpoint has 2.0"),
        ({"drop": True}, "data.sources: found pairs, the checkpoint has pairs, pictures, words"),
        ({"shards": True}, "data source pairs: shards: found 2, the checkpoint has 3"),
    ],
)
def test_a_resume_with_other_data_says_what_differs(
    mixture: Experiment, change: dict[str, object], expected: str
) -> None:
    state = first(mixture).state(3)
    sources = list(mixture.data.sources)
    if "weight" in change:
        sources[0] = sources[0].model_copy(update=change)
    if "drop" in change:
        sources = sources[:1]
    if "shards" in change:
        sources[0] = sources[0].model_copy(update={"shards": f"{sources[0].shards}/0000[01].tar"})
    lanes = change.get("lanes", mixture.data.lanes)
    data = mixture.data.model_copy(update={"sources": sources, "lanes": lanes})
    changed = mixture.model_copy(update={"data": data, "seed": change.get("seed", mixture.seed)})
    with pytest.raises(InputError, match=expected):
        first(changed, resume=state)


def test_samples_per_epoch_is_the_sum_of_the_sources(mixture: Experiment) -> None:
    assert first(mixture).samples_per_epoch == 50 + 20 + 25


def test_a_topology_that_does_not_divide_is_refused(mixture: Experiment) -> None:
    with pytest.raises(InputError, match=r"batch.global: found 24, expected micro-batch 5 x 2"):
        open_training(mixture, data_rank=0, data_world=2, micro_batch=5, accumulation=1)


def test_tokens_are_balanced(mixture: Experiment) -> None:
    sizes = []
    for rank in range(3):
        data = open_training(mixture, data_rank=rank, data_world=3, micro_batch=None, accumulation=2)
        sizes += [batch.tokens for batch in islice(data, 2)]
    # The estimate of words is rough here (numbers break into many pieces), but no micro-batch stands out.
    assert max(sizes) <= 1.5 * min(sizes)
    assert tokens_per_sample(mixture) == pytest.approx(sum(sizes) / B, rel=0.5)


# Validation


@pytest.fixture(scope="module")
def validated(mixture: Experiment, tmp_path_factory: pytest.TempPathFactory) -> Experiment:
    folder = write_shards(tmp_path_factory.mktemp("held-out"), [7, 12])
    source = mixture.data.sources[0].model_copy(update={"name": "held-out", "shards": str(folder)})
    return mixture.model_copy(update={"data": mixture.data.model_copy(update={"validation": [source]})})


@pytest.mark.parametrize("world", [1, 2, 3, 5, 8, 24])
@pytest.mark.parametrize("micro", [1, 4])
def test_validation_is_the_same_on_every_topology(validated: Experiment, world: int, micro: int) -> None:
    reference = open_validation(validated, data_rank=0, data_world=1, micro_batch=B, batches=1)
    expected = dict(pair for batch in reference for pair in contents(batch))
    assert len(expected) == reference.samples == 19
    found: dict[str, bytes] = {}
    weights = 0.0
    lengths = set()
    for rank in range(world):
        data = open_validation(validated, data_rank=rank, data_world=world, micro_batch=micro, batches=1)
        assert data.samples == 19
        batches = list(data)
        lengths.add((len(data), len(batches)))
        for batch in batches:
            assert 1 <= batch.samples <= micro
            found.update(contents(batch))
            weights += float(batch.image_targets.weight.sum())
    assert len(lengths) == 1, "ranks differ in their number of micro-batches"
    assert found == expected
    assert weights == pytest.approx(sum(float(batch.image_targets.weight.sum()) for batch in reference), abs=1e-4)


def test_validation_repeats_itself(validated: Experiment) -> None:
    data = open_validation(validated, data_rank=0, data_world=1, micro_batch=5, batches=2)
    assert [dict(contents(b)) for b in data] == [dict(contents(b)) for b in data]


def test_no_validation_source_is_an_empty_validation(mixture: Experiment) -> None:
    data = open_validation(mixture, data_rank=0, data_world=1, micro_batch=5, batches=2)
    assert (len(data), list(data), data.samples) == (0, [], 0)


# Processes


def children() -> set[int]:
    return {int(pid) for pid in Path(f"/proc/{os.getpid()}/task/{os.getpid()}/children").read_text().split()}


def test_a_killed_worker_is_replaced(mixture: Experiment, caplog: pytest.LogCaptureFixture) -> None:
    whole = [dict(contents(batch)) for batch in islice(first(mixture), 12)]
    before = children()
    stream = iter(first(with_workers(mixture, 2)))
    given = [dict(contents(next(stream))) for _ in range(2)]
    workers = children() - before
    os.kill(min(workers), signal.SIGKILL)
    time.sleep(0.5)  # a step, a save: the death of a worker interrupts neither
    given += [dict(contents(next(stream))) for _ in range(10)]
    assert given == whole
    (warning,) = [record.getMessage() for record in caplog.records]
    assert "a data worker process of rank 0 died (" in warning
    assert len(children() - before) == 2 and not children() & workers
    stream.close()


def test_a_worker_may_be_killed_at_any_moment(mixture: Experiment) -> None:
    """Also while it hands a batch over: half of one, or a whole one that cannot be opened any more."""
    whole = [dict(contents(batch)) for batch in islice(first(mixture), 6)]
    rng, before = random.Random(0), children()
    for _ in range(40):
        stream = iter(first(with_workers(mixture, 1)))
        given = [dict(contents(next(stream)))]
        (worker,) = children() - before
        for _ in range(5):
            if worker in children():
                time.sleep(rng.uniform(0.0, 0.01))
                os.kill(worker, signal.SIGKILL)
            given.append(dict(contents(next(stream))))
        stream.close()
        assert given == whole


def test_a_worker_that_does_not_begin_is_replaced(
    mixture: Experiment, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """As one forked while another thread held a lock of Python's."""
    whole = [dict(contents(batch)) for batch in islice(first(mixture), 4)]

    def begin(begun: object, worker: int) -> None:
        if worker == 1 and not (tmp_path / "hung").exists():
            (tmp_path / "hung").touch()
            time.sleep(300)
        begin_worker(begun, worker)

    monkeypatch.setattr(loader, "begin_worker", begin)
    monkeypatch.setattr(workers, "_PATIENCE", 2.0)
    before = children()
    stream = iter(first(with_workers(mixture, 2)))
    assert [dict(contents(next(stream))) for _ in range(4)] == whole
    stream.close()
    assert not children() - before
    assert "died (had not begun after 2 s)" in caplog.text


def test_workers_that_die_one_after_the_other_are_one_clear_error(mixture: Experiment) -> None:
    before = children()
    stream = iter(first(with_workers(mixture, 2)))
    next(stream)
    with pytest.raises(RuntimeError, match=r"a data worker process of rank 0 died .*, number 3 within 1000"):
        for _ in range(100):  # a death is noticed once the batches that the dead had handed over are used up
            for pid in children() - before:
                os.kill(pid, signal.SIGKILL)
            next(stream)
    assert not children() - before


def test_workers_end_with_the_stream_and_outlive_a_signal_to_the_job(mixture: Experiment) -> None:
    before = children()
    stream = iter(first(with_workers(mixture, 2)))
    for _ in range(2):  # one from each: both have begun
        next(stream)
    workers = children() - before
    for pid in workers:
        os.kill(pid, signal.SIGTERM)
    for _ in range(10):
        next(stream)
    stream.close()
    del stream
    deadline = time.monotonic() + 20
    while children() & workers and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not children() & workers


def test_a_program_that_ends_with_a_stream_open_ends(mixture: Experiment, tmp_path: Path) -> None:
    save_experiment(mixture, tmp_path / "mixture.yaml")
    program = f"""
from m3ae_scale.config import load_experiment
from m3ae_scale.data import open_training
experiment, _ = load_experiment("{tmp_path}/mixture.yaml", ["data.workers=2"])
stream = iter(open_training(experiment, data_rank=0, data_world=1, micro_batch={B}, accumulation=1))
next(stream)
raise SystemExit(7)
"""
    assert (
        subprocess.run([sys.executable, "-c", program], timeout=60, cwd=Path(m3ae_scale.__file__).parents[1]).returncode
        == 7
    )


def test_a_batch_crosses_processes_as_one_file(mixture: Experiment) -> None:
    stream = iter(first(with_workers(mixture, 1)))
    held = [next(stream) for _ in range(4)]
    files = len(list(Path("/proc/self/fd").iterdir()))
    held += [next(stream) for _ in range(4)]
    assert len(list(Path("/proc/self/fd").iterdir())) - files <= 8
    assert all(batch.decoder.order.dtype == torch.int64 for batch in held)


# Bad samples


@pytest.fixture
def spoiled(tmp_path: Path) -> Experiment:
    """60 pairs, of which 6 have no caption or half an image."""
    members = []
    for n in range(60):
        image, text = sample_members(f"{n:04d}", n)
        members += [image] if n % 20 == 7 else [(image[0], image[1][:200]), text] if n % 20 == 3 else [image, text]
    half = len(members) // 2
    write_tar(tmp_path / "a.tar", members[:half])
    write_tar(tmp_path / "b.tar", members[half:])
    return experiment(tmp_path, [{"name": "pairs", "shards": str(tmp_path)}], B, bad_sample_limit=0.5)


def test_bad_samples_are_replaced_alike_on_every_topology(spoiled: Experiment) -> None:
    reference = run(spoiled, 1)
    assert same(run(spoiled, 4), reference) and same(run(spoiled, 3, accumulation=2), reference)


def test_bad_samples_are_written_down_once(spoiled: Experiment, tmp_path: Path) -> None:
    for _ in range(2):  # the second is a resumed run, which knows what the first wrote
        data = first(spoiled, quarantine_folder=tmp_path / "run")
        list(islice(data, 8))
        assert data.bad_samples == {"pairs": 6}
    lines = (tmp_path / "run" / "quarantine-rank0.jsonl").read_text().splitlines()
    assert len(lines) == 6
    assert all('"source": "pairs", "shard": "' in line and '"reason": "' in line for line in lines)


def test_past_the_limit_the_run_stops_and_names_the_shard(tmp_path: Path) -> None:
    good = [m for n in range(200) for m in sample_members(f"{n:04d}", n)]
    bad = [(f"{n:04d}.jpg", b"") for n in range(200, 300)]
    write_tar(tmp_path / "good.tar", good)
    write_tar(tmp_path / "bad.tar", bad)
    base = experiment(tmp_path, [{"name": "pairs", "shards": str(tmp_path)}], B, bad_sample_limit=0.1)
    with pytest.raises(InputError, match=r"data source pairs: .* data.bad_sample_limit \(0.1\); most are in bad.tar"):
        list(islice(first(base), 50))


@pytest.mark.parametrize("workers", [0, 1])
def test_a_source_with_nothing_usable_ends_instead_of_searching_for_ever(tmp_path: Path, workers: int) -> None:
    write_tar(tmp_path / "bad.tar", [(f"{n:04d}.{e}", b"") for n in range(300) for e in ("jpg", "txt")])
    base = experiment(tmp_path, [{"name": "pairs", "shards": str(tmp_path)}], B, workers=workers)
    with pytest.raises(InputError, match=r"65 samples in a row cannot be used, the last bad.tar/"):
        list(islice(first(base), 50))


# Preflight


@pytest.mark.parametrize(
    ("shards", "kind", "expected"),
    [
        ("nowhere", "paired", "nowhere: No such file or directory; check the path"),
        ("nowhere-{000..003}.tar", "paired", "nowhere-000.tar: No such file or directory"),
        ("nowhere/*.tar", "paired", "found no shard"),
        ("captions.txt", "image", "captions.txt: expected a tar shard, but it is no tar"),
        ("packed.tar.gz", "image", "packed.tar.gz: expected a tar shard, but it is gzip"),
        ("nothing.tar", "image", "nothing.tar: expected a tar shard, but it is empty"),
        ("text/*.tar", "image", "kind image needs images, found 5 samples, 0 with an image and 5 with a text"),
        ("image/*.tar", "paired", "kind paired needs texts, found 5 samples, 5 with an image and 0 with a text"),
    ],
)
def test_preflight_refuses_what_cannot_be_read(tmp_path: Path, shards: str, kind: str, expected: str) -> None:
    import gzip

    (tmp_path / "captions.txt").write_text("a red square\n" * 100)
    (tmp_path / "packed.tar.gz").write_bytes(gzip.compress(b"x" * 1024))
    (tmp_path / "nothing.tar").touch()
    write_shards(tmp_path / "text", [5], "text")
    write_shards(tmp_path / "image", [5], "image")
    base = experiment(tmp_path, [{"name": "mine", "kind": kind, "shards": f"{tmp_path}/{shards}"}])
    with pytest.raises(InputError) as caught:
        preflight(base)
    assert "data source mine: " in str(caught.value) and expected in str(caught.value)
    assert "\n" not in str(caught.value)


def test_preflight_refuses_a_missing_vocabulary(mixture: Experiment) -> None:
    base = mixture.model_copy(update={"data": mixture.data.model_copy(update={"tokenizer": "/nowhere/vocab.txt"})})
    with pytest.raises(InputError, match=r"/nowhere/vocab.txt"):
        preflight(base)
