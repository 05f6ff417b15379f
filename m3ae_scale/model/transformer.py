"""The transformer that both towers are made of: pre-norm blocks on a packed run of tokens."""

from typing import NamedTuple

import torch.nn.functional as F
from torch import Tensor, nn

from m3ae_scale.batch import Stream
from m3ae_scale.kernels.attention import Packing, packing_of
from m3ae_scale.kernels.choose import Kernels
from m3ae_scale.kernels.dropout import drop_path, dropout, mix
from m3ae_scale.model.layers import Layers
from m3ae_scale.sizes import Tower


class Tokens(NamedTuple):
    """What the blocks of a tower know of its n tokens, of which they may hold a part (model/layers.py)."""

    packing: Packing  # of all of them
    sample_seed: Tensor  # (S,) int64
    sample: Tensor  # (n / parts,) int64
    seed: Tensor  # (n / parts,) int64
    seed_of_all: Tensor  # (n,) int64


class Attention(nn.Module):
    """Multi-head self-attention within each sample; qkv laid out (3, heads, head_dim) as in the reference."""

    def __init__(self, tower: Tower, layers: Layers, kernels: Kernels):
        super().__init__()
        self.head_dim = tower.dim // tower.heads
        self.attend = kernels.attention
        self.qkv = layers.column(tower.dim, 3 * tower.dim, blocks=3)
        self.proj = layers.row(tower.dim, tower.dim)

    def forward(self, x: Tensor, packing: Packing) -> Tensor:
        """Mix the tokens of each sample. x: (n, dim) -> (n, dim)."""
        qkv = self.qkv(x)
        n = qkv.shape[0]
        heads = qkv.shape[1] // (3 * self.head_dim)  # those of this rank
        attended = self.attend(qkv.view(n, 3, heads, self.head_dim), packing)
        return self.proj(attended.reshape(n, heads * self.head_dim))


class MLP(nn.Module):
    """The feed-forward layer, with the tanh form of GELU."""

    def __init__(self, tower: Tower, layers: Layers, rate: float, place: int):
        super().__init__()
        self.rate, self.place, self.first_channel = rate, place, layers.first_channel(tower.mlp_dim)
        self.fc1 = layers.column(tower.dim, tower.mlp_dim)
        self.fc2 = layers.row(tower.mlp_dim, tower.dim)

    def forward(self, x: Tensor, token_seed: Tensor) -> Tensor:
        """Transform each token on its own. x: (n, dim) -> (n, dim)."""
        hidden = F.gelu(self.fc1(x), approximate="tanh")
        if self.training and self.rate:
            hidden = dropout(hidden, token_seed, self.place, self.rate, self.first_channel)
        return self.fc2(hidden)


class Block(nn.Module):
    """x + attention(norm(x)), then x + mlp(norm(x)); `place` numbers the block for its dropped values."""

    def __init__(self, tower: Tower, layers: Layers, kernels: Kernels, drop_path: float, dropout: float, place: int):
        super().__init__()
        self.drop_path, self.dropout, self.place = drop_path, dropout, 4 * place
        self.norm1 = kernels.layer_norm(tower.dim)
        self.attention = Attention(tower, layers, kernels)
        self.norm2 = kernels.layer_norm(tower.dim)
        self.mlp = MLP(tower, layers, dropout, self.place)

    def forward(self, x: Tensor, tokens: Tokens) -> Tensor:
        """Apply the block. x: (n / parts, dim) -> (n / parts, dim)."""
        for number, branch in ((1, self._attend), (2, self._feed)):
            y = branch(x, tokens)
            if self.training and self.dropout:
                y = dropout(y, tokens.seed, self.place + number, self.dropout)
            if self.training and self.drop_path:
                y = drop_path(y, tokens.sample_seed, tokens.sample, self.place + number, self.drop_path)
            x = x + y
        return x

    def _attend(self, x: Tensor, tokens: Tokens) -> Tensor:
        return self.attention(self.norm1(x), tokens.packing)

    def _feed(self, x: Tensor, tokens: Tokens) -> Tensor:
        return self.mlp(self.norm2(x), tokens.seed_of_all)


class Transformer(nn.Module):
    """A stack of blocks with a final LayerNorm."""

    def __init__(
        self, tower: Tower, layers: Layers, kernels: Kernels, drop_path: float, dropout: float, first_place: int
    ):
        super().__init__()
        self.layers = layers
        self.blocks = nn.ModuleList(
            Block(tower, layers, kernels, drop_path, dropout, first_place + i) for i in range(tower.depth)
        )
        self.norm = kernels.layer_norm(tower.dim)

    def forward(self, x: Tensor, stream: Stream, sample_seed: Tensor) -> Tensor:
        """Encode a packed run of tokens. x: (n, dim); sample_seed: (S,) int64 -> (n, dim)."""
        n = x.shape[0]
        x, stream, sample_seed = fill_up(x, stream, sample_seed, self.layers.parts)
        # A token's seed: the same wherever its sample is packed.
        seed = mix(sample_seed[stream.sample] + 3 * stream.position + stream.modality)
        split = self.layers.split
        tokens = Tokens(packing_of(stream), sample_seed, split(stream.sample), split(seed), seed)
        x = split(x)
        for block in self.blocks:
            x = block(x, tokens)
        return self.layers.join(self.norm(x))[:n]


def fill_up(x: Tensor, stream: Stream, sample_seed: Tensor, multiple: int) -> tuple[Tensor, Stream, Tensor]:
    """Add rows of zeros until n is a `multiple`, as one more sample that nobody reads."""
    n, samples = x.shape[0], stream.cu_seqlens.shape[0] - 1
    more = -n % multiple
    if not more:
        return x, stream, sample_seed
    filled = Stream(
        order=F.pad(stream.order, (0, more)),
        inverse=F.pad(stream.inverse, (0, more)),
        modality=F.pad(stream.modality, (0, more)),
        position=F.pad(stream.position, (0, more)),
        sample=F.pad(stream.sample, (0, more), value=samples),
        cu_seqlens=F.pad(stream.cu_seqlens, (0, 1), value=n + more),
        max_seqlen=max(stream.max_seqlen, more),
    )
    return F.pad(x, (0, 0, 0, more)), filled, F.pad(sample_seed, (0, 1))
