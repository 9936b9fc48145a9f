"""Data sets whose files are checked each time they are read, and tables of modular arithmetic and permutations.

Start with `load_dataset("digits")`, which needs no download, and `standardise`; `modular_task` gives all examples of
an operation, and `split_pairs` divides them as in the published code.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
