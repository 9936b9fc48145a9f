"""The studies of the chapters: what a notebook cannot show, and the recipes of its records.

Each study has one or two modules of its own. `record_maker` finds the recipes by their name, `CHAPTERS`.
"""
