"""Acceleration of the unified multimodal model BAGEL, on PyTorch Lightning."""

__version__ = "0.1.0"
