"""Fine-tuning from the registry."""
