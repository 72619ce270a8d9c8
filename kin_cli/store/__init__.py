"""Unfinished work on the disk: the folder beside the output, and the payloads in it."""
