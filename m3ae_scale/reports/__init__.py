"""Pages about what was run: each one HTML file that holds everything it shows."""
