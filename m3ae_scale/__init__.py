"""m3ae_scale: the Multimodal Masked Autoencoder (Geng et al. 2022), trained at scale."""

__version__ = "0.1.0"
