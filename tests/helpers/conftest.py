"""Helpers hold no tests and no examples."""

collect_ignore_glob = ["*.py"]
