"""Writing the output: encoded tiles, the levels of the pyramid, the finished file, and its check."""
