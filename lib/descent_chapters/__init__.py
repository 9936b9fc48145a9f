"""What is registered of the chapters, claims and presets: `notebooks/claims` and `notebooks/presets` are put here."""
