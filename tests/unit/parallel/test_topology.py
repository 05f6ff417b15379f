"""Ranks fall into groups without gap or overlap, and a batch plan multiplies back to its global batch."""

import re

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from m3ae_scale.errors import InputError
from m3ae_scale.parallel.topology import BatchPlan, Topology, plan_batch

SMALL = st.integers(1, 24)


@given(tensor=SMALL, data=SMALL)
def test_every_rank_has_one_place(tensor: int, data: int) -> None:
    topology = Topology(tensor * data, tensor)
    assert topology.data == data
    places = [(topology.data_rank(r), topology.tensor_rank(r)) for r in range(topology.world)]
    assert sorted(places) == [(d, t) for d in range(data) for t in range(tensor)]
    for rank in range(topology.world):
        assert rank in topology.tensor_group(topology.data_rank(rank))
        assert rank in topology.data_group(topology.tensor_rank(rank))
    assert sorted(r for d in range(data) for r in topology.tensor_group(d)) == list(range(topology.world))
    assert sorted(r for t in range(tensor) for r in topology.data_group(t)) == list(range(topology.world))


def test_tensor_ranks_are_neighbours() -> None:
    topology = Topology(8, 2)
    assert topology.tensor_group(1) == (2, 3)
    assert topology.data_group(1) == (1, 3, 5, 7)


def test_a_world_that_does_not_divide_names_what_would() -> None:
    with pytest.raises(
        InputError, match=r"parallel.tensor 4 does not divide the 6 ranks; start 4 or 8 ranks.* 3 or 6$"
    ):
        Topology(6, 4)


@given(micro=SMALL, accumulation=SMALL, data=SMALL)
def test_a_plan_multiplies_back(micro: int, accumulation: int, data: int) -> None:
    whole = micro * accumulation * data
    expected = BatchPlan(whole, micro, accumulation, data)
    assert plan_batch(whole, data, micro) == expected
    assert plan_batch(whole, data, micro, accumulation) == expected
    assert plan_batch(whole, data, accumulation=accumulation) == expected
    assert expected.rank_batch == micro * accumulation


@given(global_batch=st.integers(1, 5000), micro=SMALL, data=SMALL)
def test_every_number_that_an_error_suggests_works(global_batch: int, micro: int, data: int) -> None:
    assume(global_batch % (micro * data))
    with pytest.raises(InputError) as caught:
        plan_batch(global_batch, data, micro)
    text = str(caught.value)
    globals_, _, micros = text.partition("use ")[2].partition(", or batch.micro ")
    unit = micro if micros else 1
    for suggested in re.findall(r"\d+", globals_):
        assert plan_batch(int(suggested), data, unit).global_batch == int(suggested)
    for suggested in re.findall(r"\d+", micros):
        assert plan_batch(global_batch, data, int(suggested)).global_batch == global_batch


def test_the_error_names_both_factors_and_the_nearest_batches() -> None:
    with pytest.raises(InputError) as caught:
        plan_batch(100, 4, 16)
    assert str(caught.value) == (
        "batch.global 100 does not divide by micro 16 x data parallel 4 = 64; use 64 or 128, or batch.micro 5 or 25"
    )


def test_a_contradicting_accumulation_is_an_error() -> None:
    with pytest.raises(InputError, match=r"= 32, but batch.global is 64; .* set it to 4"):
        plan_batch(64, 4, 4, accumulation=2)
    with pytest.raises(InputError, match="16 samples do not divide by gradient accumulation 3; use 2 or 4"):
        plan_batch(64, 4, accumulation=3)


@given(share=st.integers(1, 400), data=SMALL, tokens=st.floats(1, 500), budget=st.integers(500, 20_000))
def test_a_token_budget_holds_on_average_with_the_fewest_passes(
    share: int, data: int, tokens: float, budget: int
) -> None:
    plan = plan_batch(share * data, data, micro_tokens=budget, tokens_per_sample=tokens)
    assert plan.micro_batch * plan.accumulation * data == share * data
    assert plan.micro_batch * tokens <= budget
    fewer = [a for a in range(1, plan.accumulation) if share % a == 0]
    assert all(share // a * tokens > budget for a in fewer)


def test_a_token_budget_excludes_a_count_and_must_hold_a_sample() -> None:
    with pytest.raises(InputError, match="both set"):
        plan_batch(64, 4, 4, micro_tokens=100, tokens_per_sample=10)
    with pytest.raises(InputError, match=r"less than one sample \(320.5 tokens on average\); use at least 321"):
        plan_batch(64, 4, micro_tokens=100, tokens_per_sample=320.5)
