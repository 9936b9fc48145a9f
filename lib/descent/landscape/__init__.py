"""Loss surfaces: directions, the loss at any point of a plane, grids of it, and their shape."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
