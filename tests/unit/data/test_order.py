"""The global order: its arithmetic against a replay from position 0, and what a month-long run leans on."""

from collections import Counter, defaultdict
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from m3ae_scale.data.deal import Plan, deal_by_tokens
from m3ae_scale.data.order import ATTEMPTS_IN_BLOCK, Order, Places, integer_shares, permutation, schedule

WEIGHTS = st.sampled_from([0.1, 0.25, 0.5, 1.0, 1.5, 2.0, 3.0, 7.0])
LANES = st.sampled_from([1, 2, 4, 6, 8, 24])
WORLDS = st.sampled_from([1, 2, 3, 4, 5, 6, 7, 8])


@st.composite
def orders(draw: st.DrawFn, lanes: st.SearchStrategy[int] = LANES) -> Order:
    """Any mixture of small sources; some shards are empty, and there may be fewer shards than lanes."""
    counts = draw(st.lists(st.lists(st.integers(0, 12), min_size=1, max_size=6).filter(any), min_size=1, max_size=4))
    weights = draw(st.lists(WEIGHTS, min_size=len(counts), max_size=len(counts)))
    block = draw(st.sampled_from([1, 2, 5, 16, 2048]))
    return Order([np.array(c) for c in counts], weights, draw(st.integers(0, 2**63)), draw(lanes), block)


def rows(places: Places) -> list[tuple[int, int, int, int]]:
    columns = (places.source, places.epoch, places.shard, places.index)
    return list(zip(*(column.tolist() for column in columns), strict=True))


@given(orders())
def test_every_sample_stands_once_in_each_epoch_of_its_source(order: Order) -> None:
    taken: dict[int, list[tuple[int, int, int]]] = defaultdict(list)
    for source, *place in rows(order.locate(np.arange(400))):
        taken[source].append(tuple(place))
    for source, places in taken.items():
        samples = order.samples[source]
        all_of_it = {(shard, i) for shard, count in enumerate(order.counts[source]) for i in range(count)}
        for epoch in range(len(places) // samples):
            turn = places[epoch * samples : (epoch + 1) * samples]
            assert {e for e, _, _ in turn} == {epoch}
            assert {(shard, i) for _, shard, i in turn} == all_of_it


@given(orders())
@settings(max_examples=30)
def test_the_closed_form_is_the_replay(order: Order) -> None:
    """Walk from position 0 with counters, as steps 1 to 5 of the module say it, and compare."""
    mixture, lanes, length = order.mixture, order.lanes, 300
    turns: dict[tuple[int, int], list[int]] = defaultdict(list)  # (source, epoch) -> its positions
    nth: Counter[int] = Counter()
    position = 0
    while len(turns) == 0 or position < length + order.mixture.period:
        source = int(mixture.table[position // lanes % len(mixture.table), position % lanes])
        turns[source, nth[source] // order.samples[source]].append(position)
        nth[source] += 1
        position += 1
    expected = {}
    for (source, epoch), positions in turns.items():
        if len(positions) < order.samples[source]:
            continue  # the last one, cut short
        shards = permutation(len(order.counts[source]), order.seed, 1, source, epoch)
        line = [(int(shard), i) for shard in shards for i in range(order.counts[source][shard])]
        mixed = []
        for number, begin in enumerate(range(0, len(line), order.block)):
            block = line[begin : begin + order.block]
            mixed += [block[i] for i in permutation(len(block), order.seed, 2, source, epoch, number)]
        # The pieces of the line, lane after lane; sorted() is stable, so a lane keeps the order of its positions.
        for place, p in zip(mixed, sorted(positions, key=lambda p: p % lanes), strict=True):
            expected[p] = (source, epoch, *place)
    known = np.array([p for p in range(length) if p in expected], dtype=np.int64)
    assert rows(order.locate(known)) == [expected[p] for p in known.tolist()]


@given(orders(), st.integers(0, 10**15), st.integers(1, 50))
def test_a_position_needs_nothing_before_it(order: Order, start: int, count: int) -> None:
    positions = np.arange(start, start + count)
    together = rows(order.locate(positions))
    fresh = Order(order.counts, order.mixture.weights, order.seed, order.lanes, order.block)
    alone = [rows(fresh.locate(positions[i : i + 1]))[0] for i in reversed(range(count))]
    assert together == alone[::-1]
    for source, _, shard, index in together:
        assert 0 <= index < order.counts[source][shard]


@given(orders())
@settings(max_examples=30)
def test_shares_of_the_mixture_hold_in_every_prefix(order: Order) -> None:
    shares = integer_shares(order.mixture.weights)
    source = order.locate(np.arange(3 * order.lanes * 40)).source
    for s, share in enumerate(shares):
        ideal = Fraction(share, sum(shares))
        count = np.cumsum(source == s)
        for p in range(1, len(source) + 1):
            off = abs(count[p - 1] - ideal * p)
            assert off < 1 + (order.lanes * ideal * (1 - ideal) if p % order.lanes else 0)


@given(st.lists(st.integers(1, 60), min_size=1, max_size=6))
def test_a_schedule_is_never_a_whole_turn_off(shares: list[int]) -> None:
    slots, total = schedule(shares), sum(shares)
    assert np.bincount(slots, minlength=len(shares)).tolist() == shares
    for s, share in enumerate(shares):
        off = np.cumsum(slots == s) * total - np.arange(1, total + 1) * share
        assert abs(off).max() < total


@given(st.lists(st.floats(1e-6, 1e6), min_size=1, max_size=8))
def test_weights_become_integers_in_proportion(weights: list[float]) -> None:
    shares = integer_shares(weights)
    assert min(shares) >= 1
    for share, weight in zip(shares, weights, strict=True):
        # Below 1 / 65536 a source still gets one turn, which the others make room for.
        assert abs(share / sum(shares) - weight / sum(weights)) <= (len(weights) + 1) / 2**16


def test_simple_weights_are_exact() -> None:
    assert integer_shares([0.1, 0.2, 0.7]) == [1, 2, 7]
    assert integer_shares([3.0, 3.0]) == [1, 1]


@given(st.integers(0, 3000), st.lists(st.integers(0, 2**64), min_size=1, max_size=4))
def test_a_permutation_is_one(size: int, key: list[int]) -> None:
    found = permutation(size, *key)
    assert np.array_equal(np.sort(found), np.arange(size))
    assert np.array_equal(found, permutation(size, *key))


def test_permutations_do_not_change_between_versions() -> None:
    """A checkpoint holds a position only: the order must be the same after an upgrade."""
    order = Order([np.array([5, 0, 9]), np.array([4])], [2.0, 1.0], seed=42, lanes=4, block=8)
    expected = [(0, 0, 2, 6), (1, 0, 0, 1), (0, 0, 2, 3), (0, 0, 0, 4), (1, 0, 0, 3), (0, 0, 2, 0)]
    assert rows(order.locate(np.arange(6))) == expected
    assert permutation(8, 1, 2, 3).tolist() == [0, 1, 3, 2, 7, 6, 5, 4]


def test_epochs_and_seeds_give_different_orders() -> None:
    def epoch(number: int, seed: int) -> list[tuple[int, int]]:
        order = Order([np.full(10, 20)], [1.0], seed)
        return [(shard, i) for _, _, shard, i in rows(order.locate(np.arange(200) + 200 * number))]

    first = epoch(0, 1)
    for other in (epoch(1, 1), epoch(2, 1), epoch(0, 2)):
        assert sorted(other) == sorted(first)
        assert sum(a == b for a, b in zip(first, other, strict=True)) < 20


# Ranks


@given(
    order=orders(lanes=st.just(24)),
    worlds=st.lists(st.tuples(WORLDS, st.integers(1, 3), st.integers(1, 4)), min_size=1, max_size=4),
    micro=st.integers(1, 2),
    by=st.sampled_from(["count", "tokens", "evenly"]),
)
def test_any_chain_of_topologies_consumes_the_same_global_batches(
    order: Order, worlds: list[tuple[int, int, int]], micro: int, by: str
) -> None:
    """A run that is stopped and resumed on other numbers of ranks: every step is the undisturbed run's."""
    batch = 840 * micro  # a multiple of each world size

    def tokens(positions: np.ndarray) -> np.ndarray:
        return 1 + positions * 7919 % 60

    step = 0
    for world, accumulation, steps in worlds:
        assume(by != "count" or batch % (world * accumulation) == 0)
        for _ in range(steps):
            found, sizes = [], set()
            for rank in range(world):
                plan = Plan(batch, rank, world, accumulation, by)
                for part in range(accumulation):
                    assert plan.step_of(step * accumulation + part) == step
                    mine = plan.positions(step * accumulation + part, tokens)
                    found += mine.tolist()
                    sizes.add(len(mine))
            assert sorted(found) == list(range(step * batch, (step + 1) * batch))
            assert by == "tokens" or max(sizes) - min(sizes) <= (0 if by == "count" else 2)
            step += 1


@given(st.lists(st.integers(1, 300), min_size=24, max_size=200), st.sampled_from([1, 2, 3, 4, 8]), st.integers(1, 3))
def test_dealing_by_tokens_balances(tokens: list[int], world: int, accumulation: int) -> None:
    dealt = deal_by_tokens(np.array(tokens), world, accumulation)
    assert sorted(i for rank in dealt for part in rank for i in part) == list(range(len(tokens)))
    loads = [sum(tokens[i] for i in part) for rank in dealt for part in rank]
    assert min(loads) > 0
    assert max(loads) - min(loads) <= max(tokens)


@pytest.mark.parametrize("world", [1, 2, 3, 4, 6, 8, 12, 24])
def test_a_rank_reads_its_own_shards_front_to_back(world: int) -> None:
    """24 lanes, 240 shards: only shards on one of the 23 cuts, or in a block on a cut, are read by two ranks."""
    order = Order([np.full(240, 100), np.full(480, 50)], [2.0, 1.0], seed=3, block=50)
    readers: dict[tuple[int, int], set[int]] = defaultdict(set)
    for rank in range(world):
        visits: dict[int, list[tuple[int, int]]] = defaultdict(list)
        positions = np.arange(rank, 24_000, world)
        for p, (source, epoch, shard, _) in zip(positions, rows(order.locate(positions)), strict=True):
            if epoch == 0:
                readers[source, shard].add(rank)
                visits[int(p) % 24].append((source, shard))
        for lane in visits.values():
            for source in (0, 1):
                mine = [shard for s, shard in lane if s == source]
                # A block of 50 spans two shards at most: a shard left behind for good is one that lies before.
                last = {shard: i for i, shard in enumerate(mine)}
                first = {shard: mine.index(shard) for shard in last}
                overlapping = sum(first[b] < last[a] for a in last for b in last if first[a] < first[b])
                assert overlapping <= len(last)
    shared = sum(len(ranks) > 1 for ranks in readers.values())
    assert shared <= (0 if world == 1 else 2 * 2 * 23)
    assert shared < len(readers) / 4


def test_no_rank_sees_one_source_only() -> None:
    """Weights 1 : 1 and an even world would give rank 0 one source and rank 1 the other, were rows not shuffled."""
    order = Order([np.array([1000]), np.array([1000])], [1.0, 1.0], seed=0)
    source = order.locate(np.arange(240_000)).source
    for world in (2, 4, 8, 24):
        for rank in range(world):
            assert abs(source[rank::world].mean() - 0.5) < 0.01
            assert abs(source[: 24 * world][rank::world].mean() - 0.5) < 0.25  # and not by taking turns


# Substitutes


@given(orders(), st.integers(0, 10**12), st.integers(1, 40))
def test_a_substitute_is_of_the_same_source_and_epoch(order: Order, position: int, attempt: int) -> None:
    wanted = rows(order.locate(np.array([position])))[0]
    found = rows(order.substitute(position, attempt))[0]
    assert found[:2] == wanted[:2]
    assert found[3] < order.counts[found[0]][found[2]]
    assert found == rows(order.substitute(position, attempt))[0]


def test_early_substitutes_are_near_and_late_ones_are_anywhere() -> None:
    order = Order([np.full(100, 100)], [1.0], seed=0, block=100)
    near = {rows(order.substitute(5, a))[0][2] for a in range(1, ATTEMPTS_IN_BLOCK + 1)}
    far = {rows(order.substitute(5, a))[0][2] for a in range(ATTEMPTS_IN_BLOCK + 1, ATTEMPTS_IN_BLOCK + 41)}
    assert len(near) <= 2 and len(far) > 20
