"""The paper's figures: comparisons of normalisations, kernels side by side, and the statistics of the patches."""
