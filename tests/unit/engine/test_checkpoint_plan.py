"""Who writes what, and how fragments cover a tensor: every element once, shares balanced, rounds bounded."""

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from m3ae_scale.engine.checkpoint import plan
from m3ae_scale.engine.checkpoint.format import KINDS
from m3ae_scale.engine.checkpoint.routes import cover

SHAPES = st.lists(st.lists(st.integers(1, 40), min_size=1, max_size=2).map(tuple), min_size=1, max_size=30).map(
    lambda shapes: {f"block.{i}": shape for i, shape in enumerate(shapes)}
)


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plan, "WRITER_BYTES", 500)
    monkeypatch.setattr(plan, "ROUND_BYTES", 2000)
    monkeypatch.setattr(plan, "FILE_BYTES", 5000)


@given(SHAPES, st.integers(1, 9), st.data())
def test_every_tensor_is_written_once_by_balanced_writers(
    shapes: dict[str, tuple[int, ...]], world: int, data: st.DataObject
) -> None:
    holders = data.draw(st.dictionaries(st.sampled_from(list(shapes)), st.integers(0, world - 1)))
    shares = plan.share_out(shapes, world, holders)
    pieces = [piece for rounds in shares.values() for pieces in rounds for piece in pieces]
    assert sorted((p.kind, p.name) for p in pieces) == sorted((kind, name) for kind in KINDS for name in shapes)
    assert set(shares) <= set(range(world))
    loads = [sum(p.bytes for pieces in rounds for p in pieces) for rounds in shares.values()]
    assert max(loads) <= sum(loads) / len(loads) + max(p.bytes for p in pieces)
    for rounds in shares.values():
        assert all(len(pieces) == 1 or sum(p.bytes for p in pieces) <= plan.ROUND_BYTES for pieces in rounds)


@given(SHAPES, st.integers(1, 9))
def test_a_file_has_one_kind_one_writer_and_is_written_in_one_go(
    shapes: dict[str, tuple[int, ...]], world: int
) -> None:
    owners: dict[str, int] = {}
    for writer, rounds in plan.share_out(shapes, world).items():
        seen: list[str] = []
        for piece in (p for pieces in rounds for p in pieces):
            assert piece.file.startswith(f"{piece.kind}-")
            assert owners.setdefault(piece.file, writer) == writer
            if not seen or seen[-1] != piece.file:
                assert piece.file not in seen
                seen.append(piece.file)
    for kind in KINDS:
        numbers = sorted(int(name.split("-")[1][:5]) for name in owners if name.startswith(f"{kind}-0"))
        assert numbers == list(range(1, len(numbers) + 1))


def test_small_models_have_few_writers_spread_over_the_ranks() -> None:
    assert list(plan.share_out({"a": (10,)}, world=64)) == [0]
    assert list(plan.share_out({f"b{i}": (10, 10) for i in range(4)}, world=64)) == [i * 64 // 10 for i in range(10)]


def test_who_holds_a_tensor_writes_it_as_far_as_the_balance_allows() -> None:
    shapes = {f"b{i}": (10, 10) for i in range(4)}
    shares = plan.share_out(shapes, world=2, holders={"b0": 0, "b1": 1, "b2": 0, "b3": 1})
    names = {rank: {p.name for pieces in rounds for p in pieces} for rank, rounds in shares.items()}
    assert names == {0: {"b0", "b2"}, 1: {"b1", "b3"}}
    lopsided = plan.share_out(shapes, world=2, holders=dict.fromkeys(shapes, 1))
    assert [sum(p.bytes for pieces in rounds for p in pieces) for rounds in lopsided.values()] == [2400, 2400]


@st.composite
def partitions(draw: st.DrawFn) -> tuple[list[tuple[int, int, int]], int]:
    """Fragments of a tensor over ranks, some of them replicated or empty."""
    length = draw(st.integers(1, 50))
    cuts = [0, *sorted(draw(st.lists(st.integers(0, length), max_size=4))), length]
    ranges = [(start, end - start) for start, end in itertools.pairwise(cuts)]
    ranges += draw(st.lists(st.sampled_from(ranges), max_size=3))
    ranks = draw(st.permutations(range(len(ranges))))
    return [(rank, *fragment) for rank, fragment in zip(ranks, ranges, strict=True)], length


@given(partitions(), st.integers(0, 5))
def test_legs_cover_every_element_once(fragments: tuple[list[tuple[int, int, int]], int], prefer: int) -> None:
    ranges, length = fragments
    held = {rank: (start, count) for rank, start, count in ranges}
    done = 0
    for leg in cover(ranges, length, prefer):
        start, count = held[leg.source]
        assert leg.start == done and leg.length > 0
        assert start + leg.skip == leg.start and leg.skip + leg.length <= count
        done += leg.length
    assert done == length


def test_a_hole_is_not_papered_over() -> None:
    with pytest.raises(RuntimeError, match="elements 3 to 10 of a parameter are on no rank"):
        cover([(0, 0, 3), (1, 5, 5)], 10, prefer=0)


def test_of_replicas_the_writer_takes_its_own() -> None:
    replicas = [(rank, 0, 10) for rank in range(4)]
    assert [leg.source for leg in cover(replicas, 10, prefer=2)] == [2]
