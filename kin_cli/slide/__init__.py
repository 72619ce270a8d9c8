"""Pixels in: slides and plain images behind one protocol, views of them at a level or a resolution, tissue masks."""
