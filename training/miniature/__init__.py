"""The miniature: a tiny Qwen3-VL, its experts and router, made from nothing on a CPU."""
