"""The library of *Anatomy of Descent*: rooms for training, gradients, curvature, loss surfaces and what they show."""

__version__ = "0.2.0"
