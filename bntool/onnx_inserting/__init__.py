"""What inserting norms into an ONNX model takes: where they can go, what they read, putting them in."""
