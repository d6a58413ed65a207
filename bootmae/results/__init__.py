"""Result rows and their provenance. Imports no other room."""
