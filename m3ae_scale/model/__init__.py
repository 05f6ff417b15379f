"""M3AE as the paper describes it, on packed tokens. No rank, no ZeRO and no device in this room.

Shape letters: S samples; E and D tokens of the encoder's and the decoder's stream; K predicted tokens.
"""

from m3ae_scale.model.layers import Layers, PlainLayers
from m3ae_scale.model.m3ae import M3AE, Encoder, Losses

__all__ = ["M3AE", "Encoder", "Layers", "Losses", "PlainLayers"]
