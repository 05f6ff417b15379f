"""The multimodal masked autoencoder (Geng et al. 2022): one encoder over visible tokens, one decoder over all."""

from typing import NamedTuple

import torch
from torch import Tensor, nn

from m3ae_scale.batch import Batch, Targets
from m3ae_scale.config import ModelConfig
from m3ae_scale.kernels.choose import Kernels
from m3ae_scale.model.embed import DecoderEmbedding, EncoderEmbedding
from m3ae_scale.model.heads import ImageHead, TextHead
from m3ae_scale.model.layers import Layers
from m3ae_scale.model.pixels import Channels, normalise
from m3ae_scale.model.transformer import Transformer


class Losses(NamedTuple):
    """What each sample lost; a sample without tokens of a modality lost 0 in it."""

    image: Tensor  # (S,) float32: mean over the sample's predicted patches
    text: Tensor  # (S,) float32: mean over its predicted words
    text_accuracy: Tensor  # (S,) float32: share of its predicted words that are right


class Reconstruction(NamedTuple):
    """What the decoder says of the tokens in Batch.image_targets and Batch.text_targets."""

    image: Tensor  # (K, patch_dim) normalised pixels, or (K, codebook) logits
    text: Tensor  # (K, vocabulary) logits


class Encoder(nn.Module):
    """Turns the visible tokens of a batch into representations; what is kept after pretraining."""

    def __init__(
        self, config: ModelConfig, vocabulary: int, mean: Channels, std: Channels, layers: Layers, kernels: Kernels
    ):
        super().__init__()
        self.embed = EncoderEmbedding(config, vocabulary, mean, std, layers)
        self.transformer = Transformer(
            config.encoder.shape, layers, kernels, config.drop_path, config.dropout, first_place=1
        )

    def forward(self, batch: Batch) -> Tensor:
        """Encode the visible tokens: (E, dim), packed as Batch.encoder says."""
        return self.transformer(self.embed(batch), batch.encoder, batch.sample_seed)


class Decoder(nn.Module):
    """Fills in what was hidden; dropped after pretraining."""

    def __init__(self, config: ModelConfig, layers: Layers, kernels: Kernels):
        super().__init__()
        self.embed = DecoderEmbedding(config)
        self.transformer = Transformer(
            config.decoder.shape,
            layers,
            kernels,
            config.drop_path,
            config.dropout,
            first_place=1 + config.encoder.depth,
        )

    def forward(self, encoded: Tensor, batch: Batch) -> Tensor:
        """Decode every token. encoded: (E, encoder dim) -> (D, dim), packed as Batch.decoder says."""
        tokens = self.embed(encoded, batch)
        return self.transformer(tokens, batch.decoder, batch.sample_seed)


class M3AE(nn.Module):
    """The whole autoencoder, scored on the tokens it had to fill in."""

    def __init__(
        self, config: ModelConfig, vocabulary: int, mean: Channels, std: Channels, layers: Layers, kernels: Kernels
    ):
        super().__init__()
        self.mean, self.std, self.discrete = mean, std, config.image_codebook > 0
        self.encoder = Encoder(config, vocabulary, mean, std, layers, kernels)
        self.decoder = Decoder(config, layers, kernels)
        self.image_head = ImageHead(config, kernels)
        self.text_head = TextHead(config, vocabulary, layers, kernels)

    def forward(self, batch: Batch) -> Losses:
        """Encode what is visible, decode everything, score what was hidden."""
        image, text = self._decode_targets(batch)
        image_loss = self.image_head(image, self._image_target(batch))
        word = batch.words.index_select(0, batch.text_targets.token)
        text_loss, predicted = self.text_head(text, word)
        return Losses(
            image=per_sample(image_loss, batch.image_targets, batch.samples),
            text=per_sample(text_loss, batch.text_targets, batch.samples),
            text_accuracy=per_sample((predicted == word).float(), batch.text_targets, batch.samples),
        )

    def reconstruct(self, batch: Batch) -> Reconstruction:
        """Predict the batch's target tokens, unscored."""
        image, text = self._decode_targets(batch)
        return Reconstruction(self.image_head.predict(image), self.text_head.predict(text))

    def _decode_targets(self, batch: Batch) -> tuple[Tensor, Tensor]:
        decoded = self.decoder(self.encoder(batch), batch)
        return decoded.index_select(0, batch.image_targets.row), decoded.index_select(0, batch.text_targets.row)

    def _image_target(self, batch: Batch) -> Tensor:
        if self.discrete:
            if not len(batch.patches):  # a batch of texts has no codebook ids, and needs none
                return batch.image_targets.token
            if batch.patch_tokens is None:
                raise ValueError("image_codebook is set, but the batch has no patch_tokens")
            return batch.patch_tokens.index_select(0, batch.image_targets.token)
        return normalise(batch.patches.index_select(0, batch.image_targets.token), self.mean, self.std)


def per_sample(values: Tensor, targets: Targets, samples: int) -> Tensor:
    """Average `values` (K,) over the tokens of each sample: (S,) float32; 0 where a sample has none."""
    return torch.zeros(samples, device=values.device).index_add(0, targets.sample, values * targets.weight)
