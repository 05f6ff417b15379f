"""What is measured on this hardware: how fast, in how much memory, how well it scales; rows of JSON with provenance."""
