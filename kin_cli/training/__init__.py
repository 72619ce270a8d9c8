"""Training of generators: patches straight from slides, three frameworks, exact resume."""
