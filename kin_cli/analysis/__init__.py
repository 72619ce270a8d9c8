"""What the statistics of a slide's patches are like: how they change with distance, and what a thumbnail has."""
