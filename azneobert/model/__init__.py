"""The encoder and its export."""
