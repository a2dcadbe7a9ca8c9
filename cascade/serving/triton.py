"""Where the model.py of earlier releases finds its class; new ones import the adapter."""

from cascade.triton.adapter import TritonPythonModel

__all__ = ["TritonPythonModel"]
