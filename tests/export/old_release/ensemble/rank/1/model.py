"""All of it is in the library."""

from cascade.serving.triton import TritonPythonModel

__all__ = ["TritonPythonModel"]
