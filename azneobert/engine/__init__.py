"""What computes the numbers: a step of the optimizer, and its state in and out."""
