"""The reference backend: the ONNX project's own evaluator, slow and beyond doubt."""
