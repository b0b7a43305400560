"""ONNX surgery: an encoder's graphs, and the forms of a step that each provider runs fastest."""
