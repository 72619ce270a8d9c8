"""The command line: the only place that knows click, tqdm, stdout and exit codes."""
