"""Measures a trained miniature: what its router's shape is worth, and whether it meets its bars."""
