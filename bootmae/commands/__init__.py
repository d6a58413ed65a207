"""Implementations of the commands in tools/, one module for each command."""
