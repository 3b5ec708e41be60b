"""Stain normalisers: functions that give images of one stain the look of another, and their file.

They stand below the tasks: the stain task makes them, classification applies them to raw images.
"""
