class HTTPOptions:
    host: str | None

class ServeControllerClient:
    http_config: HTTPOptions

def _get_global_client(*, raise_if_no_controller_running: bool) -> ServeControllerClient | None: ...
