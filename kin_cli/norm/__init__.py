"""Kernelized instance normalization: kernels, the table of statistics, its interpolation, and the norm layer."""
