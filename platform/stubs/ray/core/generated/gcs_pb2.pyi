class _Address:
    worker_id: bytes

class WorkerTableData:
    worker_address: _Address
    exit_type: int
    @staticmethod
    def FromString(data: bytes) -> WorkerTableData: ...  # noqa: N802
