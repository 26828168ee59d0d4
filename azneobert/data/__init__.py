"""Documents, tokens, rows and the stream."""
