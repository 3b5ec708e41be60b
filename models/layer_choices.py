"""Which of the shared layers a network has, as its configuration names them (see models/layers.py)."""

from typing import Literal

Norm = Literal["instance", "batch", "pixel", "none"]
Upsampling = Literal["transposed", "nearest"]
ClassifierNorm = Literal["group", "frozen", "auxiliary"]  # see models/classifiers/norm.py
