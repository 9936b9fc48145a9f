"""Executed chapters bound as HTML and PDF: figures, claims, tables and scripts of the pages."""
