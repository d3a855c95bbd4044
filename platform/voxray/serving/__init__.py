"""Serving: packages behind HTTP, on Ray Serve.

`http` checks and answers requests; studies lie in a folder and jobs in a database, so that both outlive
every process; the scheduler (`jobs`) hands jobs to the deployments that read scans and hold the networks.
"""
