"""Stain normalisers: functions that give images of one stain the look of another."""

from trainer.normalizers.base import StainNormalizer

__all__ = ["StainNormalizer"]
