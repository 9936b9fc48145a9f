"""Sphinx extension of the book."""


class PlotlyRenderer:
    """To be written."""
