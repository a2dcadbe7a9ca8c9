"""What runs one exported graph: ONNX Runtime, TorchScript or AOTInductor, on a CPU or a GPU."""
