"""Reading slides and plain images: one interface for all formats, views at a level or resolution, tissue masks."""
