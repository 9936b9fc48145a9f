"""Second derivatives of a network's loss as operators, and what their spectra are, without building a matrix.

Start with `hessian` or `gauss_newton`, which take any torch model, a loss and batches. Then `extreme_eigenpairs`,
`spectral_density` and `estimate_trace` take that operator, or any other symmetric one, by its products alone.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
