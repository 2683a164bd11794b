"""`make demo`: the whole path on real input. Uses the services only as a client would."""
