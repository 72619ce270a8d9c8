"""Slides in a browser: a tile server for this machine, a page that compares slides, and a static copy of both."""
