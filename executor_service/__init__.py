"""The executor: one base, all experts, a gated forward. Never knows why a gate was chosen."""
