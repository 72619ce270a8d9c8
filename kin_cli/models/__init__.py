"""Generators: architectures, checkpoints, and the exchange of their norm layers."""
