"""All of it is in the library."""

from cascade.triton.adapter import TritonPythonModel

__all__ = ["TritonPythonModel"]
