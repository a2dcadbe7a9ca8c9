"""The stages as plain objects, the pipeline that chains them, and what puts them into Triton."""
