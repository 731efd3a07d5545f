"""What folding an ONNX model takes: carrying a plan out, and comparing the result with the original."""
