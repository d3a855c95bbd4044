"""voxray: train, tune and serve 3D CT detection and segmentation on a Ray cluster."""

__version__ = "0.1.0"
