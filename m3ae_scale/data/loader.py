"""From an experiment to micro-batches: opens sources, and runs the worker processes that prepare batches ahead.

Micro-batch m of a rank (m = step x accumulation + number in the step) is a function of m alone. The workers take m in
turn and DataLoader returns them in order, so any number of workers gives the same sequence, and to resume is to begin
at another m.
"""

import atexit
import logging
import mmap
import sys
from collections import Counter
from collections.abc import Generator, Iterator
from contextlib import closing
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset, get_worker_info

from m3ae_scale.batch import Batch, Targets
from m3ae_scale.config.schema import Experiment
from m3ae_scale.data.cursor import Cursor, check_order, order_identity
from m3ae_scale.data.deal import Plan
from m3ae_scale.data.handoff import Parcel, unwrap, wrap
from m3ae_scale.data.index import IndexedSource, index_source
from m3ae_scale.data.order import Order
from m3ae_scale.data.pack import pack
from m3ae_scale.data.prepare import recipe_of
from m3ae_scale.data.quarantine import Bad, Quarantine
from m3ae_scale.data.remote import Cache
from m3ae_scale.data.supply import Supply, estimate_tokens
from m3ae_scale.data.workers import Forks, WorkerDied, begin_worker, end_workers, expect_workers, next_of
from m3ae_scale.errors import InputError

log = logging.getLogger(__name__)

_DEATHS, _CALM = 3, 1000  # so many deaths of workers within so many micro-batches are no accident
_FETCH_AHEAD = 32  # micro-batches of a worker before a remote shard is needed


class TrainingData:
    """The endless micro-batches of one rank, `accumulation` of them a step, from `start_step` on.

    samples_per_epoch: samples of all sources together. With several sources it is a measure of length only: each
    source has its own epoch, which ends when all its samples were seen.
    bad_samples: by source, the different bad samples that this rank has met.
    """

    def __init__(self, batches: "_MicroBatches", first: int, cursor: Cursor, quarantine: Quarantine):
        self.samples_per_epoch = sum(batches.supply.order.samples)
        self._batches, self._first, self._cursor, self._quarantine = batches, first, cursor, quarantine

    @property
    def bad_samples(self) -> Counter[str]:
        """Return, by source, how many different bad samples this rank has met."""
        return self._quarantine.counts

    def __iter__(self) -> Iterator[Batch]:
        """Yield micro-batches without end.

        Raises InputError past data.bad_sample_limit, RuntimeError when worker processes die one after the other.
        """
        return _run(self._batches, range(self._first, sys.maxsize), self._quarantine)

    def state(self, step: int) -> Cursor:
        """Return the cursor before `step`: a few numbers from which any number of ranks can resume."""
        ahead = (step - self._cursor["step"]) * self._batches.plan.batch
        return {**self._cursor, "step": step, "position": self._cursor["position"] + ahead}


class ValidationData:
    """A fixed set of validation samples, dealt into equally many micro-batches on every rank; may be iterated again.

    samples: of the whole set, all ranks together. The mean loss is the sum over all ranks of the per-sample losses,
    divided by it: where a rank would have an empty micro-batch, a sample stands in whose losses weigh 0.
    """

    def __init__(self, batches: "_MicroBatches | None", count: int, samples: int):
        self.samples = samples
        self._batches, self._count = batches, count

    def __len__(self) -> int:
        return self._count

    def __iter__(self) -> Iterator[Batch]:
        return _run(self._batches, range(self._count), Quarantine(limit=1.0)) if self._batches else iter(())


def open_training(
    experiment: Experiment,
    *,
    data_rank: int,
    data_world: int,
    micro_batch: int | None,
    accumulation: int,
    start_step: int = 0,
    resume: Cursor | None = None,
    quarantine_folder: Path | None = None,
) -> TrainingData:
    """Open the training data of one data-parallel rank.

    micro_batch: samples of each micro-batch; None: deal the global batch by tokens (batch.micro_tokens).
    resume: the `state` of a checkpoint, which then sets the step; its data must be the same, the topology need not.
    quarantine_folder: where bad samples are written down, the run's folder.
    Raises InputError for what `preflight` finds, or a checkpoint of other data.
    """
    batch, data = experiment.batch.global_, experiment.data
    if micro_batch is not None and micro_batch * data_world * accumulation != batch:
        raise InputError(
            f"batch.global: found {batch}, expected micro-batch {micro_batch} x {data_world} data-parallel ranks x "
            f"accumulation {accumulation} = {micro_batch * data_world * accumulation}"
        )
    if batch < data_world * accumulation:
        raise InputError(
            f"batch.global: found {batch}, fewer samples than micro-batches in a step ({data_world * accumulation})"
        )
    sources = [index_source(source, data, progress=data_rank == 0) for source in data.sources]
    identity = order_identity(sources, data, experiment.seed)
    position = start_step * batch
    if resume is not None:
        check_order(resume["order"], identity)
        start_step, position = resume["step"], resume["position"]
    by: Literal["count", "tokens"] = "tokens" if micro_batch is None else "count"
    plan = Plan(batch, data_rank, data_world, accumulation, by, origin=position - start_step * batch)
    quarantine = Quarantine(data.bad_sample_limit, quarantine_folder, data_rank)
    if data_rank == 0:
        quarantine.note(Bad(s.name, shard, "", damage) for s in sources for shard, damage in s.damages())
    return TrainingData(
        _MicroBatches(_supply(experiment, sources, train=True), plan, experiment),
        first=start_step * accumulation,
        cursor={"step": start_step, "position": position, "order": identity},
        quarantine=quarantine,
    )


def open_validation(
    experiment: Experiment, *, data_rank: int, data_world: int, micro_batch: int, batches: int
) -> ValidationData:
    """Open the validation data of one rank: the same samples and masks each time and on every topology, not augmented.

    micro_batch: samples of a micro-batch, at most.
    batches: global batches of the set, fewer when a source has no more samples.
    """
    if not experiment.data.validation:
        return ValidationData(None, 0, 0)
    sources = [index_source(source, experiment.data, progress=data_rank == 0) for source in experiment.data.validation]
    supply = _supply(experiment, sources, train=False)
    order = supply.order
    unrepeated = min(order.mixture.position(s, n) for s, n in enumerate(order.samples))
    samples = min(batches * experiment.batch.global_, unrepeated)
    count = -(-samples // (data_world * micro_batch))
    plan = Plan(samples, data_rank, data_world, count, by="evenly")
    return ValidationData(_MicroBatches(supply, plan, experiment, validation=True), count, samples)


def preflight(experiment: Experiment) -> None:
    """Check the data of an experiment before its run, and bring the indices up to date.

    Raises InputError for a missing shard or folder, a file that is no tar, a source without a usable sample of its
    kind, or a vocabulary that cannot be used.
    """
    recipe_of(experiment)
    for source in (*experiment.data.sources, *experiment.data.validation):
        index_source(source, experiment.data, progress=True)


def tokens_per_sample(experiment: Experiment) -> float:
    """Return about how many tokens a sample of the training mixture has; patches exact, words by text length.

    With batch.micro_tokens, the accumulation that fits is global batch x this / (micro_tokens x ranks), rounded up.
    """
    recipe, total, mean = recipe_of(experiment), 0.0, 0.0
    for source in experiment.data.sources:
        indexed = index_source(source, experiment.data)
        filled = np.flatnonzero(indexed.counts)
        some = filled[:: -(-len(filled) // 64)]  # 64 shards tell enough
        rows = np.concatenate([indexed.rows(int(shard)) for shard in some])
        mean += source.weight * float(estimate_tokens(rows, source.kind, recipe).mean())
        total += source.weight
    return mean / total


def _supply(experiment: Experiment, sources: list[IndexedSource], train: bool) -> Supply:
    data = experiment.data
    order = Order(
        [source.counts for source in sources],
        [source.weight for source in sources],
        experiment.seed,
        lanes=data.lanes,
        block=data.shuffle_block,
    )
    return Supply(sources, order, recipe_of(experiment), Cache.of(data), train)


@dataclass(frozen=True)
class _Prepared:
    """What a worker returns for one micro-batch."""

    parcel: Parcel | None  # None: it failed
    bad: list[Bad] = field(default_factory=list)
    tried: Counter[str] = field(default_factory=Counter)
    failure: str = ""  # of the user's data, in one line

    def pin_memory(self) -> "_Prepared":
        return replace(self, parcel=self.parcel and self.parcel.pin_memory())


class _MicroBatches(Dataset):
    """Micro-batch `number` of this rank, prepared in whichever process asks for it."""

    def __init__(self, supply: Supply, plan: Plan, experiment: Experiment, validation: bool = False):
        self.supply, self.plan, self.validation = supply, plan, validation
        self.loss, self.patch_dim = experiment.loss, experiment.model.patch_dim
        self.workers, self.prefetch = experiment.data.workers, experiment.data.prefetch
        self._fetched_to = -1

    def __getitem__(self, number: int) -> _Prepared:
        positions = self.plan.positions(number, self.supply.tokens)
        if self.supply.any_remote and not self.validation:
            self._fetch_ahead(number)
        # An empty micro-batch would end a validation on one rank only: a sample stands in, with weight 0.
        stand_in = len(positions) == 0
        if stand_in:
            positions = np.array([0])
        try:
            epoch = 0 if self.validation else None  # of its source, or fixed
            supplied = self.supply.take(positions, epoch, self.plan.step_of(number))
        except InputError as error:
            return _Prepared(None, failure=str(error))
        batch = pack(supplied.samples, self.loss, self.patch_dim)
        if stand_in:
            batch = replace(
                batch,
                image_targets=_weightless(batch.image_targets),
                text_targets=_weightless(batch.text_targets),
                has_image=torch.zeros_like(batch.has_image),
                has_text=torch.zeros_like(batch.has_text),
            )
        return _Prepared(wrap(batch), supplied.bad, supplied.tried)

    def _fetch_ahead(self, number: int) -> None:
        info = get_worker_info()
        stride = info.num_workers if info else 1
        for ahead in range(max(number, self._fetched_to + stride), number + (_FETCH_AHEAD + 1) * stride, stride):
            self.supply.fetch_ahead(self.plan.positions(ahead, self.supply.tokens))
            self._fetched_to = ahead


def _weightless(targets: Targets) -> Targets:
    return replace(targets, weight=torch.zeros_like(targets.weight))


def _run(batches: _MicroBatches, numbers: range, quarantine: Quarantine) -> Iterator[Batch]:
    """Yield the micro-batches of `numbers` in order; when a worker has died, new ones begin at the next."""
    taken, deaths = 0, [-_CALM] * _DEATHS  # of each of the last deaths, how many were taken before
    while True:
        try:
            with closing(_prepare_ahead(batches, numbers[taken:])) as stream:
                for prepared in stream:
                    if prepared.parcel is None:
                        raise InputError(prepared.failure)
                    quarantine.judge(prepared.bad, prepared.tried)
                    taken += 1
                    yield unwrap(prepared.parcel)
            return
        except WorkerDied as death:
            told = f"a data worker process of rank {batches.plan.rank} died ({death})"
            deaths = [*deaths[1:], taken]
            if taken - deaths[0] < _CALM:
                raise RuntimeError(
                    f"{told}, number {_DEATHS} within {_CALM} micro-batches; "
                    "most often the machine ran out of memory: lower data.workers or data.prefetch"
                ) from None
            log.warning("%s; new ones go on from its next micro-batch", told)


def _prepare_ahead(batches: _MicroBatches, numbers: range) -> Generator[_Prepared, None, None]:
    workers = batches.workers
    begun = mmap.mmap(-1, max(1, workers))
    loader: DataLoader[_Prepared] = DataLoader(
        batches,
        batch_size=None,
        sampler=numbers,
        num_workers=workers,
        prefetch_factor=batches.prefetch if workers else None,
        pin_memory=torch.cuda.is_available(),
        worker_init_fn=partial(begin_worker, begun) if workers else None,
        multiprocessing_context=Forks() if workers else None,
    )
    stream = iter(loader)
    stop = partial(end_workers, stream)
    atexit.register(stop)  # before multiprocessing's own, which would wait for ever for who ignores SIGTERM
    try:
        if workers:
            expect_workers(stream, begun)
        while True:
            try:
                prepared = next_of(stream)
            except StopIteration:
                return
            yield prepared
    finally:
        stop()
        atexit.unregister(stop)
