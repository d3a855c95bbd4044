"""From a run to a package or a bundle that is held against torch's answers."""
