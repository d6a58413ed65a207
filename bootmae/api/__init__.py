"""What ``import bootmae`` offers; see docs/python.md. The names are imported from the package itself."""
