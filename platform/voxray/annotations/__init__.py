"""Annotations of every kind to one form: boxes with class indices, or a label map of class numbers.

`tables` reads what CSV and JSON files say of objects, `maps` what voxels say. Everything is a pure function of text
and arrays; files are opened in `voxray.loading`. What cannot be used comes back as a list of `DataError`, all of it,
so that a user mends a file once and not row by row.
"""
