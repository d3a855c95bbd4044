"""Sums on boxes, in torch and float32: ``x1 y1 z1 x2 y2 z2``, half-open, in edge voxels of the grid at hand."""
