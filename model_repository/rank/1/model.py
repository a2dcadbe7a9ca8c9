"""The rank stage; all of it is in the library."""

from cascade.serving.triton import Rank as TritonPythonModel

__all__ = ["TritonPythonModel"]
