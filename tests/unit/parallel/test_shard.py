import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from m3ae_scale.parallel.shard import Shard


@given(
    dim=st.integers(0, 1),
    blocks=st.sampled_from([1, 3]),
    per_block=st.integers(1, 9),
    world=st.integers(1, 4),
)
def test_join_undoes_part(dim: int, blocks: int, per_block: int, world: int) -> None:
    length = blocks * per_block
    shape = [5, 5]
    shape[dim] = length
    whole = torch.arange(length * 5.0).view(shape)
    shard = Shard(dim, length, blocks)
    parts = [shard.part(whole, rank, world) for rank in range(world)]
    assert len({part.shape for part in parts}) == 1
    assert torch.equal(shard.join(parts), whole)


def test_qkv_is_split_by_heads() -> None:
    qkv = torch.tensor([0, 1, 2, 3, 10, 11, 12, 13, 20, 21, 22, 23])  # four heads of one channel each
    assert Shard(0, 12, blocks=3).part(qkv, 1, 2).tolist() == [2, 3, 12, 13, 22, 23]


def test_a_vocabulary_that_does_not_divide_is_padded_at_its_end() -> None:
    assert Shard(0, 5).part(torch.ones(5), 1, 2).tolist() == [1, 1, 0]


@pytest.mark.parametrize("dim", [0, 1])
def test_bias_and_matrix_follow_the_same_rule(dim: int) -> None:
    matrix = torch.arange(36.0).view(6, 6)
    part = Shard(dim, 6, 3).part(matrix, 1, 2)
    assert torch.equal(part, matrix[1::2] if dim == 0 else matrix[:, 1::2])
