"""Classifiers of single blood cells: SENet-154-GE, its small relatives, and any timm model."""

from models.classifiers.build import build_classifier
from models.classifiers.config import ClassifierConfig, ModelError

__all__ = ["ClassifierConfig", "ModelError", "build_classifier"]
