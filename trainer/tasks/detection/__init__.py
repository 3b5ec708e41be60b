"""Finding cells in fields: a finder of nuclei that needs no training, and detectors that are trained."""
