"""Slides in, figures out: which tiles, which metrics, and the seams with their map."""
