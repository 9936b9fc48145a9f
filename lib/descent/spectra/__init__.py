"""Spectra of stacks of gradients and weights, the shape of a path of weights, and Fourier measures modulo p.

Start with the `gram_matrix` of rows that are one per step, from which `singular_spectrum` and `principal_path` go on;
`gaussian_null_rows`, `shuffled_null_rows` and `random_walk` are what chance alone would give. The Fourier functions are
for networks that compute modulo a number.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
