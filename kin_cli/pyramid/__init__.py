"""Pixels out: encoded tiles, the levels made from them, the finished files, and their check."""
