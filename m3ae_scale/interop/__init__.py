"""Weights in and out: other people's layouts, by name and shape."""
