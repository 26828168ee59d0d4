"""Kernels for Hopper GPUs: what PyTorch and its compiler leave on the table, each with its gradient."""
