"""The router: features to gates. Knows numpy and onnxruntime, never torch."""
