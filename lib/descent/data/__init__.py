"""Data sets, fetched and checked before use, and tables of modular arithmetic and groups."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
