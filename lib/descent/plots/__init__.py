"""From arrays to figures, in the style of the book; never computes, never saves."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
