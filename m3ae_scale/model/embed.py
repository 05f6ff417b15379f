"""From patches and words to tokens: embeddings, positions, modality types, CLS and mask tokens (paper, section 3.1)."""

import torch
from torch import Tensor, nn

from m3ae_scale.batch import IMAGE, TEXT, Batch, Stream
from m3ae_scale.config import ModelConfig
from m3ae_scale.kernels.permute import permute_rows
from m3ae_scale.model.layers import Layers
from m3ae_scale.model.pixels import Channels, normalise
from m3ae_scale.model.positions import position_table


class Places(nn.Module):
    """Adds to each token its fixed position and, if wanted, the learned embedding of its modality."""

    def __init__(self, config: ModelConfig, dim: int):
        super().__init__()
        self.dim, self.grid = dim, config.grid
        self.words = max(config.text_length, config.unpaired_text_length)
        self.image_type = nn.Parameter(torch.empty(dim)) if config.type_embedding else None
        self.text_type = nn.Parameter(torch.empty(dim)) if config.type_embedding else None

    def forward(self, x: Tensor, stream: Stream) -> Tensor:
        """Place the tokens of `stream`; CLS has neither position nor type. x: (n, dim) -> (n, dim)."""
        first_row = (stream.modality >= IMAGE).long() + (stream.modality == TEXT) * self.grid**2
        table = position_table(self.dim, self.grid, self.words, x.device, x.dtype)
        x = x + table.index_select(0, first_row + stream.position)
        if self.image_type is not None and self.text_type is not None:
            # A product with one-hot rows, not a look-up: its gradient is a sum instead of colliding writes.
            kind = torch.stack([stream.modality == IMAGE, stream.modality == TEXT], dim=1).to(x.dtype)
            x = x + kind @ torch.stack([self.image_type, self.text_type])
        return x


class EncoderEmbedding(nn.Module):
    """Embeds what the encoder may see: a CLS token for each sample, the visible patches, the visible words."""

    def __init__(self, config: ModelConfig, vocabulary: int, mean: Channels, std: Channels, layers: Layers):
        super().__init__()
        dim = config.encoder.dim
        self.mean, self.std = mean, std
        self.image = nn.Linear(config.patch_dim, dim)
        self.text = layers.vocabulary_embedding(vocabulary, dim)
        self.cls_token = nn.Parameter(torch.empty(dim))
        self.places = Places(config, dim)

    def forward(self, batch: Batch) -> Tensor:
        """Build the encoder's input: (E, dim)."""
        pixels = normalise(batch.patches.index_select(0, batch.visible_patches), self.mean, self.std)
        words = batch.words.index_select(0, batch.visible_words)
        cls = self.cls_token.expand(batch.samples, -1)
        tokens = torch.cat([cls, self.image(pixels.to(cls.dtype)), self.text(words)])
        tokens = permute_rows(tokens, batch.encoder.order, batch.encoder.inverse)
        return self.places(tokens, batch.encoder)


class DecoderEmbedding(nn.Module):
    """Puts the encoded tokens back in place, with a learned token wherever one was hidden."""

    def __init__(self, config: ModelConfig):
        super().__init__()
        dim = config.decoder.dim
        self.project = nn.Linear(config.encoder.dim, dim)
        self.image_mask = nn.Parameter(torch.empty(dim))
        self.text_mask = nn.Parameter(torch.empty(dim))
        self.places = Places(config, dim)

    def forward(self, encoded: Tensor, batch: Batch) -> Tensor:
        """Build the decoder's input. encoded: (E, encoder dim) -> (D, dim)."""
        hidden_patches = len(batch.patches) - len(batch.visible_patches)
        hidden_words = len(batch.words) - len(batch.visible_words)
        masks = [self.image_mask.expand(hidden_patches, -1), self.text_mask.expand(hidden_words, -1)]
        tokens = torch.cat([self.project(encoded), *masks])
        tokens = permute_rows(tokens, batch.decoder.order, batch.decoder.inverse)
        return self.places(tokens, batch.decoder)
