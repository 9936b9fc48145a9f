"""Reproducible runs: random streams from seeds, sweeps over processes and clusters, records, and claims with verdicts.

Start with `torch_generator` and `numpy_generator` for randomness, `sweep` to compute a function at many points, and
`Record` to keep what was measured. The room imports torch only where a function needs it.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
