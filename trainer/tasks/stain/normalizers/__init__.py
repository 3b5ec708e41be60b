"""Stain normalisers: functions that give images of one stain the look of another."""
