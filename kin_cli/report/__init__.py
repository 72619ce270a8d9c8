"""The report of a translation: one HTML file that shows it beside its source, its seams, and how it was made."""
