"""Unfinished work on disk: the work folder beside the output, the claim on it, and the stores in it."""
