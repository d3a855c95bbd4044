"""Serving: packages behind HTTP, on Ray Serve.

The door (`door`) checks and answers requests; studies lie in a folder and jobs in a database, so that both outlive
every process; the desk (`desk`) hands jobs to the deployments that read scans and hold the networks.
"""
