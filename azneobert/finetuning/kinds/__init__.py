"""The kinds of tasks, a file each."""
