"""DeepSpeed's engine: what it is told, how it is built, and its state."""
