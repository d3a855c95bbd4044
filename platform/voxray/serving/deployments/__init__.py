"""The service put together: on Ray Serve, or in one process."""
