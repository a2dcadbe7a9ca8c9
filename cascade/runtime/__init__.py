"""Runs one exported graph: by ONNX Runtime, TorchScript or AOTInductor, on a CPU or a GPU."""
