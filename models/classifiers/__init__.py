"""Classifiers of single blood cells: SENet-154-GE, its small relatives, and any timm model."""

from models.classifiers.build import build_classifier
from models.classifiers.config import ClassifierConfig

__all__ = ["ClassifierConfig", "build_classifier"]
