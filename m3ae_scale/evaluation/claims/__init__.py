"""The paper's claims as experiments: arms that differ in one thing, several seeds, and the verdict of the intervals."""
