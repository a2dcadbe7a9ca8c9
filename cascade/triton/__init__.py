"""Inside a process of Triton: the adapter, admission, metrics and the request log."""
