"""Synthetic screens: what the user's screens look like, drawn with known contents.

Knows no model and no file format.
"""
