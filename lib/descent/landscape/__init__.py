"""Loss surfaces of any torch model: directions in weight space, the loss at points of a plane, grids, and their shape.

Start with two of `random_direction`, then `Evaluator` and `loss_surface`; `star_shaped_share` and `plane_nonconvexity`
measure the shape, and `export_surface` writes it for other programs.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
