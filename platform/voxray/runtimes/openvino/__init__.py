"""The ``openvino`` runtime, and what makes its graphs faster."""
