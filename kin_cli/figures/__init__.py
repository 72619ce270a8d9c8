"""The paper's figures for any slide: methods side by side, kernels side by side, and statistics of the patches."""
