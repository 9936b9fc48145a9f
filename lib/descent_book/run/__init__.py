"""Chapters run, kept and compared: their parameters, their keys, their executed notebooks."""
