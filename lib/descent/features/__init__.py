"""Features as directions: how many dimensions they have, what they share, which figures they form."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
