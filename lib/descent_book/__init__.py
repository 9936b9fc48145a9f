"""The machine that runs the chapters and binds the book: no chapter imports it, no chapter's key contains it."""

from importlib.util import find_spec

if find_spec("papermill") is None:
    raise ModuleNotFoundError("descent_book needs more than the library: in a clone of the book, pip install '.[book]'")
