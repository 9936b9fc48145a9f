"""A training loop that can be killed and resumed, and the recording of gradients and weights in any training loop.

Start with `GradientRecorder` and `CapturePlan` in a loop of your own, or with `fit`, `MiniBatches` and `TrainingPlan`.
`open_stack` reads what was recorded into a folder.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
