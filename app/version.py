"""The version of this release, stated here and nowhere else: pyproject.toml reads it from here."""

VERSION = "0.1.0"
