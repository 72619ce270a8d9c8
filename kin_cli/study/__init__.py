"""Reader studies: make one from slides, serve it to readers or export it, and score their answers."""
