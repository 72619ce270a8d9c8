"""The two passes over a slide: measure fills the table, apply writes the tiles; and the background between them."""
