"""The retrieve stage; all of it is in the library."""

from cascade.serving.triton import Retrieve as TritonPythonModel

__all__ = ["TritonPythonModel"]
