"""The health check's name in earlier releases: python -m cascade.serving.health."""

from cascade import errors
from cascade.server.health import main

if __name__ == "__main__":
    errors.run(main)
