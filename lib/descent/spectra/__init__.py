"""Singular values of tall matrices, Fourier measures of modular arithmetic, and the shape of a path."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
