"""Kernels for Hopper GPUs: faster than what PyTorch and its compiler give, each with its gradient."""
