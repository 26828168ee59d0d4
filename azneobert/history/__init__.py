"""What became of a training, from the records that it left: points and manifests. No MLflow, no torch."""
