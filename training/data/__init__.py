"""Records: importing, labelling, splitting, counting, drawing and sampling them.

Knows no model.
"""
