"""One operation a file, each with its backends; `choose` picks them for the hardware at hand."""
