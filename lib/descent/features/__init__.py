"""Features as directions: how many dimensions they have, what they share, and which figures they form.

Start with `dimensionality` of a map whose columns are features; `feature_clusters` says which share dimensions, and
`random_directions` is what chance alone would give.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
