"""The universal checkpoint."""
