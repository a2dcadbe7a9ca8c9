"""A cascade of models that were trained elsewhere, described by one file: docs/your-models.md."""
