"""Data, training and evaluation: what makes experts and a router. Knows no server's internals."""
