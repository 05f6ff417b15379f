"""A plain dense M3AE in PyTorch: what a good engineer writes first, after reading the paper. Our own code.

Images and padded captions as two tensors, masks drawn on the device over whole (padded) sequences as the official code
does, gather and concatenate, torch's scaled_dot_product_attention with a mask for padding, heads over all tokens and
losses weighed by mask, autocast for bf16, fused AdamW.
"""

from typing import Any

import torch
import torch.nn.functional as F
from serve import read_batches, read_task
from torch import Tensor, nn
from torch_steps import serve_training

KEEP = 0.25


class Block(nn.Module):
    """A pre-norm block."""

    def __init__(self, dim: int, heads: int):
        super().__init__()
        self.heads = heads
        self.norm1, self.norm2 = nn.LayerNorm(dim), nn.LayerNorm(dim)
        self.qkv, self.proj = nn.Linear(dim, 3 * dim), nn.Linear(dim, dim)
        self.mlp = nn.Sequential(nn.Linear(dim, 4 * dim), nn.GELU(approximate="tanh"), nn.Linear(4 * dim, dim))

    def forward(self, x: Tensor, real: Tensor | None) -> Tensor:
        """x: (B, n, dim); real: (B, 1, 1, n) bool, or None."""
        q, k, v = self.qkv(self.norm1(x)).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        attended = F.scaled_dot_product_attention(q, k, v, attn_mask=real).transpose(1, 2).flatten(2)
        x = x + self.proj(attended)
        return x + self.mlp(self.norm2(x))


class Tower(nn.Module):
    """Blocks and a norm."""

    def __init__(self, dim: int, depth: int, heads: int):
        super().__init__()
        self.blocks = nn.ModuleList(Block(dim, heads) for _ in range(depth))
        self.norm = nn.LayerNorm(dim)

    def forward(self, x: Tensor, real: Tensor | None) -> Tensor:
        """x: (B, n, dim); real: (B, n) bool, or None."""
        mask = None if real is None else real[:, None, None, :]
        for block in self.blocks:
            x = block(x, mask)
        return self.norm(x)


class DenseM3AE(nn.Module):
    """The autoencoder on padded tensors."""

    def __init__(self, task: dict[str, Any]):
        super().__init__()
        dim, decoder_dim = task["encoder"][0], task["decoder"][0]
        self.patch, patch_dim = task["patch"], task["patch"] ** 2 * 3
        patches = (task["image"] // self.patch) ** 2
        self.image_in, self.text_in = nn.Linear(patch_dim, dim), nn.Embedding(task["vocabulary"], dim)
        self.encoder, self.decoder = Tower(*task["encoder"]), Tower(*task["decoder"])
        self.project = nn.Linear(dim, decoder_dim)
        self.image_out = nn.Linear(decoder_dim, patch_dim)
        self.text_out = nn.Linear(decoder_dim, task["vocabulary"])
        self.cls = nn.Parameter(torch.randn(1, 1, dim) * 0.02)
        for name, width in (("encoder", dim), ("decoder", decoder_dim)):
            # Fixed positions of whatever value: they cost the same.
            self.register_buffer(f"{name}_image_place", torch.randn(1, patches, width))
            self.register_buffer(f"{name}_text_place", torch.randn(1, 64, width))
            for kind in ("image", "text"):
                setattr(self, f"{name}_{kind}_type", nn.Parameter(torch.randn(1, 1, width) * 0.02))
        self.image_mask_token = nn.Parameter(torch.randn(1, 1, decoder_dim) * 0.02)
        self.text_mask_token = nn.Parameter(torch.randn(1, 1, decoder_dim) * 0.02)

    def forward(self, image: Tensor, text: Tensor | None, padding: Tensor | None) -> Tensor:
        """Score a batch. image: (B, side, side, 3); text, padding: (B, 64), or None for images alone."""
        batch, side = image.shape[0], image.shape[1] // self.patch
        target = image.view(batch, side, self.patch, side, self.patch, 3).transpose(2, 3).flatten(3).flatten(1, 2)
        x, places, hidden_image = keep_some(self.image_in(target) + self.encoder_image_place + self.encoder_image_type)
        sequences, real = [self.cls.expand(batch, -1, -1), x], None
        if text is not None and padding is not None:
            words = self.text_in(text) + self.encoder_text_place + self.encoder_text_type
            kept, word_places, hidden_text = keep_some(words)
            sequences.append(kept)
            real_words = padding.gather(1, word_places) == 0
            real = torch.cat([real_words.new_ones(batch, 1 + x.shape[1]), real_words], 1)
        encoded = self.project(self.encoder(torch.cat(sequences, 1), real))
        seen = x.shape[1]
        image_tokens = put_back(encoded[:, 1 : 1 + seen], places, self.image_mask_token, target.shape[1])
        tokens = [encoded[:, :1], image_tokens + self.decoder_image_place + self.decoder_image_type]
        if text is not None and padding is not None:
            text_tokens = put_back(encoded[:, 1 + seen :], word_places, self.text_mask_token, text.shape[1])
            tokens.append(text_tokens + self.decoder_text_place + self.decoder_text_type)
            real = torch.cat([real.new_ones(batch, 1 + target.shape[1]), padding == 0], 1)
        decoded = self.decoder(torch.cat(tokens, 1), real)
        pixels = self.image_out(decoded[:, 1 : 1 + target.shape[1]]).float()
        loss = mean_where((pixels - target).square().mean(-1), hidden_image)
        if text is not None and padding is not None:
            logits = self.text_out(decoded[:, 1 + target.shape[1] :]).float()
            each = F.cross_entropy(logits.transpose(1, 2), text, reduction="none")
            loss = loss + 0.5 * mean_where(each, hidden_text * (1 - padding))
        return loss


def keep_some(x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Keep a quarter of the tokens of each sample: the kept ones, their places, and (B, n) 1.0 = hidden."""
    batch, n, dim = x.shape
    places = torch.rand(batch, n, device=x.device).argsort(1)[:, : int(n * KEEP)]
    hidden = torch.ones(batch, n, device=x.device).scatter_(1, places, 0.0)
    return x.gather(1, places[..., None].expand(-1, -1, dim)), places, hidden


def put_back(x: Tensor, places: Tensor, mask_token: Tensor, length: int) -> Tensor:
    """Put kept tokens where they were, the mask token elsewhere."""
    whole = mask_token.to(x.dtype).expand(x.shape[0], length, -1)
    return whole.scatter(1, places[..., None].expand(-1, -1, x.shape[2]), x)


def mean_where(values: Tensor, where: Tensor) -> Tensor:
    """Mean over the marked tokens of each sample, then over samples."""
    return ((values * where).sum(1) / where.sum(1).clamp(min=1e-5)).mean()


def main() -> None:
    """Build, and serve."""
    task = read_task()
    torch.set_num_threads(task["threads"])
    device = torch.device(task["device"])
    model = DenseM3AE(task).to(device)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, betas=(0.9, 0.95), weight_decay=0.05, fused=True)
    data = [{key: torch.from_numpy(value).to(device) for key, value in batch.items()} for batch in read_batches(task)]
    for batch in data:
        batch["text"] = batch["text"].long()

    def loss(number: int) -> Tensor:
        batch = data[number % len(data)]
        words = (batch["text"], batch["padding"]) if task["text"] else (None, None)
        return model(batch["image"], *words)

    serve_training(task, optimizer, loss, {"torch": torch.__version__})


if __name__ == "__main__":
    main()
