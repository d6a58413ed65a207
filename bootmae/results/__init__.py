"""Result rows, and where a result comes from. Knows no other room."""
