"""The launcher's name in earlier releases: python -m cascade.serving."""

from cascade import errors
from cascade.server.__main__ import main

if __name__ == "__main__":
    errors.run(main)
