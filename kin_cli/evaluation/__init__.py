"""Quality of whole slides: open them, choose tiles, run the metrics, measure and map the seams."""
