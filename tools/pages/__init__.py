"""The generated parts of README, docs and model index, from the rows in results/. For maintainers."""
