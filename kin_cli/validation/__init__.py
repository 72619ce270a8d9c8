"""Validation of a translation against the real stain of a registered serial section."""
