"""kin: seam-aware stain translation of whole-slide images (Kernelized Instance Normalization)."""

__version__ = "0.1.0"
