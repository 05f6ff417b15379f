"""What a pretrained encoder is good for."""
