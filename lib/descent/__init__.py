"""Helpers behind the notebooks of *Anatomy of Descent*: training, gradient capture, spectral analysis."""

__version__ = "0.2.0"
