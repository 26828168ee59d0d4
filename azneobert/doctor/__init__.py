"""What this machine can do for a recipe, and what is in the way: `azneobert doctor`, a file for each area."""
