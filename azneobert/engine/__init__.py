"""The engines: one optimizer step, and the training state in and out."""
