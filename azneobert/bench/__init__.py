"""What `azneobert bench` runs: every claim of speed or memory is a row of one of its tables."""
