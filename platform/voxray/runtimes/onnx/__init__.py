"""A network as ONNX, in single and half precision."""
