"""AzNeoBERT: pretraining an Azerbaijani NeoBERT encoder. The library knows nothing of DVC, SLURM or argv."""

__version__ = "0.1.0"
