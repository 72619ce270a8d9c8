"""The paper's normalisation: kernels, tables of statistics, their read-out, and the layer that uses them."""
