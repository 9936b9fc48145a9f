"""Smooth functions with a saddle: their derivatives, the paths of optimisers over them, and their critical points.

Start with `classic_saddle`, or `scalar_field` for a function of your own; `follow_optimiser` descends it and
`find_critical_points` searches for points of any index.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
