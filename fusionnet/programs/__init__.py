"""A trained run's network as a program that needs nothing of this package: ONNX or torch.export."""
