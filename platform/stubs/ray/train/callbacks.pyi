from collections.abc import Mapping

class UserCallback:
    def after_exception(self, run_context: object, worker_exceptions: Mapping[int, Exception]) -> None: ...
