"""The networks of the chapters, the flat vector of the weights of any network, and published weights.

Start with `mlp` or `cifar_resnet` for a network, and with `flatten`, `unflatten` and `Layout` to go between named
weights and one vector; these three take any model. `load_checkpoint` reads the residual networks of the book.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
