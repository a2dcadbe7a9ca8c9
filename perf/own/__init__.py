"""`make own`: a cascade of plain PyTorch, in every form, through one file, against its own code."""
