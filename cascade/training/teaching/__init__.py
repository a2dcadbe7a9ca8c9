"""A model learns the order that another gives: distillation, over candidates or the catalogue."""
