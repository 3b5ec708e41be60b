"""Choices that configurations name and other modules act on."""

from typing import Literal

PrecisionChoice = Literal["auto", "fp32", "fp16", "bf16"]
Precision = Literal["fp32", "fp16", "bf16"]
EngineChoice = Literal["auto", "ddp", "zero1", "zero2"]
# `alone` is no choice of a run: it moves a network whose numbers nobody keeps, to see what memory that takes.
EngineName = Literal["ddp", "zero1", "zero2", "alone"]
# What a change of an image is measured by: see `gradient_penalty`.
PenaltyMetric = Literal["euclidean", "root_mean_square"]
# Of a file that export.py writes.
Format = Literal["onnx", "torch_export"]
