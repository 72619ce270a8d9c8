"""The report of a translation: one HTML file with source and translation, seams, metrics and settings."""
