"""What operators see: metrics, logs, and whether the server is well."""
