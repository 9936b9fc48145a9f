"""Figures in the style of the book, drawn from arrays: lines, maps, features and scenes in three dimensions.

Start with `use_style` and with `line_panels` of `LinePanel`, and give the figure to `show` with a sentence for those
who do not see it. Every axis needs `Labels`. Nothing is computed or saved here.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
