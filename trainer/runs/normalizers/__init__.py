"""Stain normalisers, below the tasks: the stain task makes them, classification applies them to raw images.

A normaliser gives each image the look of its target stain, independently of other images and without its label:
images float32 [n, 3, H, W] in [-1, 1] -> the same shape, range and device. It has a `name` for scores and file names;
`describe()` gives the name and distinguishing facts as plain JSON values; `state_dict()` gives tensors and plain values
from which `from_state` makes it again. A new kind joins `StainNormalizer` in bundle.py.
"""
