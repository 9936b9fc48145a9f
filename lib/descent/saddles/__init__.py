"""Functions with known saddles, the paths of optimisers on them, and the search for critical points."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
