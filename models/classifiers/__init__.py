"""Classifiers of single blood cells: SENet-154-GE, its small relatives, and its rivals."""

from models.classifiers.build import build_classifier
from models.classifiers.config import ClassifierConfig

__all__ = ["ClassifierConfig", "build_classifier"]
