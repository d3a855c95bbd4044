class RayServeException(Exception): ...  # noqa: N818
