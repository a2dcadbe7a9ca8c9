"""What runs around tritonserver: the launcher, the supervisor, health and security."""
