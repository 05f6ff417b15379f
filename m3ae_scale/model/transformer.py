"""The transformer that both towers are made of: pre-norm blocks on a packed run of tokens."""

import torch.nn.functional as F
from torch import Tensor, nn

from m3ae_scale.batch import Stream
from m3ae_scale.kernels.attention import Packing, packing_of
from m3ae_scale.kernels.choose import Kernels
from m3ae_scale.kernels.dropout import drop_path, dropout, mix
from m3ae_scale.model.layers import Layers
from m3ae_scale.sizes import Tower


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
        n = x.shape[0]
        qkv = self.qkv(x)
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

    def forward(self, x: Tensor, packing: Packing, sample: Tensor, sample_seed: Tensor, token_seed: Tensor) -> Tensor:
        """Apply the block. x: (n, dim); sample, token_seed: (n,) int64; sample_seed: (S,) int64 -> (n, dim)."""
        for number, branch in ((1, self._attend), (2, self._feed)):
            y = branch(x, packing, token_seed)
            if self.training and self.dropout:
                y = dropout(y, token_seed, self.place + number, self.dropout)
            if self.training and self.drop_path:
                y = drop_path(y, sample_seed, sample, self.place + number, self.drop_path)
            x = x + y
        return x

    def _attend(self, x: Tensor, packing: Packing, token_seed: Tensor) -> Tensor:
        return self.attention(self.norm1(x), packing)

    def _feed(self, x: Tensor, packing: Packing, token_seed: Tensor) -> Tensor:
        return self.mlp(self.norm2(x), token_seed)


class Transformer(nn.Module):
    """A stack of blocks with a final LayerNorm."""

    def __init__(
        self, tower: Tower, layers: Layers, kernels: Kernels, drop_path: float, dropout: float, first_place: int
    ):
        super().__init__()
        self.blocks = nn.ModuleList(
            Block(tower, layers, kernels, drop_path, dropout, first_place + i) for i in range(tower.depth)
        )
        self.norm = kernels.layer_norm(tower.dim)

    def forward(self, x: Tensor, stream: Stream, sample_seed: Tensor) -> Tensor:
        """Encode a packed run of tokens. x: (n, dim); sample_seed: (S,) int64 -> (n, dim)."""
        packing = packing_of(stream)
        # A token's seed: the same wherever its sample is packed.
        token_seed = mix(sample_seed[stream.sample] + 3 * stream.position + stream.modality)
        for block in self.blocks:
            x = block(x, packing, stream.sample, sample_seed, token_seed)
        return self.norm(x)
