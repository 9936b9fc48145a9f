"""The machine that runs the chapters and binds the book: no chapter imports it, no chapter's key contains it."""
