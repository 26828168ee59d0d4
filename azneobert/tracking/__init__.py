"""What a run records: points on disk first, and from there to MLflow, and to wandb beside it."""
