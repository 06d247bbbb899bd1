"""One run handed to a scheduler: SLURM, Kubernetes JobSet, SkyPilot."""
