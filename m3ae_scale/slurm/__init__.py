"""A run as a SLURM job: what to ask sbatch for, and what a job does each time it starts. Imports no torch."""
