"""Generators for README tables, docs and model index, from the rows in results/. For maintainers."""
