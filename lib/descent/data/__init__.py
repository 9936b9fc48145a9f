"""Data sets whose files are checked each time they are read.

Start with `load_dataset("digits")`, which needs no download, and `standardise`. The tables of modular arithmetic and of
permutations that the chapters on grokking learn are in `descent.data.group_tables`.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
