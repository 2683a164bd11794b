"""The gated model: base, experts, features. Knows torch; knows no queue, wire or policy."""
