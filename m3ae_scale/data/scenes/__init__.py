"""Invented scenes with truthful captions: what is in one (scene), how it looks (pixels), how it is told (words)."""
