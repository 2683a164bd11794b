"""Records: reading, labelling, counting and synthesizing them.

Knows no model.
"""
