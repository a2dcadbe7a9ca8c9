"""The prerank stage; all of it is in the library."""

from cascade.serving.triton import Prerank as TritonPythonModel

__all__ = ["TritonPythonModel"]
