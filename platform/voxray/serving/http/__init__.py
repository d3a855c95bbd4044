"""The routes of the service: its own API and the protocols beside it, who may ask, and what is replied."""
