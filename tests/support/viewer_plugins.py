"""How MONAI Label's clients speak: 3D Slicer's plugin and OHIF's, by what their sources do on the wire.

Slicer's plugin writes its forms by hand (a boundary that begins with dashes, a part's content type guessed from its
file name, files named by their whole path), speaks through http.client, hands the open reply to cgi.FieldStorage and
keeps the first part that has a file name; with a token, its headers of a form stay on for what it asks next. OHIF's
panel asks for the image alone and reads it as NRRD; an older one decodes a whole reply as text and searches it for
content types. Facts of MONAI Label 0.8.5: plugins/slicer/MONAILabel/MONAILabelLib/client.py, plugins/ohifv3
(MonaiLabelPanel.tsx, MonaiLabelClient.js); `test_ohif.py` runs the real ones.
"""

from __future__ import annotations

import http.client
import json
import mimetypes
import re
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote_plus

import httpx

with warnings.catch_warnings():
    warnings.simplefilter("ignore", DeprecationWarning)
    try:
        import cgi
    except ImportError:  # Python 3.13; Slicer's own is older
        cgi = None  # type: ignore[assignment]

BOUNDARY = "----------lImIt_of_THE_fIle_eW_$"


class RefusedError(Exception):
    """A reply that is not 200."""

    def __init__(self, status: int, body: bytes) -> None:
        super().__init__(f"{status}: {body.decode(errors='replace')}")
        self.status, self.body = status, body


@dataclass
class Slicer:
    """The plugin's client."""

    host: str
    folder: Path
    """Where replies are saved."""
    token: str = ""
    client_id: str = "user-xyz"

    def get(self, path: str) -> Any:
        """JSON."""
        return json.loads(self.send("GET", path)[0])

    def post(self, path: str, **params: Any) -> Any:
        """JSON for JSON; the plugin always says who it is."""
        body = json.dumps({**params, "client_id": self.client_id}).encode()
        return json.loads(self.send("POST", path, body, "application/json")[0])

    def send(
        self, method: str, path: str, body: bytes | None = None, kind: str | None = None
    ) -> tuple[bytes, dict[str, str]]:
        """The reply's body and headers."""
        connection, reply = self._ask(method, path, body, kind)
        data = reply.read()
        connection.close()
        if reply.status != 200:
            raise RefusedError(reply.status, data)
        return data, {name.lower(): value for name, value in reply.getheaders()}

    def upload(self, image: str, path: Path) -> Any:
        """PUT /datastore/?image=, as the plugin does it to this day."""
        form = self._form({"params": {"client_id": self.client_id}}, {"file": path})
        return json.loads(self.send("PUT", f"/datastore/?image={quote_plus(image)}", form, KIND)[0])

    def save_label(self, image: str, path: Path, *, tag: str = "", **params: Any) -> Any:
        """What was drawn."""
        where = f"/datastore/label?image={quote_plus(image)}" + (f"&tag={quote_plus(tag)}" if tag else "")
        form = self._form({"params": {**params, "client_id": self.client_id}}, {"label": path})
        return json.loads(self.send("PUT", where, form, KIND)[0])

    def session(self, path: Path) -> Any:
        """This one request goes through the library requests, with the client's id as a field."""
        headers = {"Authorization": f"Bearer {self.token}"} if self.token else {}
        with path.open("rb") as file:
            reply = httpx.put(
                f"http://{self.host}/session/",
                files=[("files", (path.name, file))],
                data={"client_id": self.client_id},
                headers=headers,
                timeout=60,
            )
        if reply.status_code != 200:
            raise RefusedError(reply.status_code, reply.content)
        return reply.json()

    def infer(
        self, model: str, image: str = "", *, session: str = "", file: Path | None = None, **params: Any
    ) -> tuple[Path, dict[str, Any]]:
        """The first file of the reply, saved under its name, and the parameters."""
        where = f"/infer/{quote_plus(model)}?image={quote_plus(image)}"
        where += f"&session_id={quote_plus(session)}" if session else ""
        asked = {"result_extension": ".nrrd", "result_dtype": "uint8", **params, "client_id": self.client_id}
        body = self._form({"params": asked}, {"file": file} if file else {})
        connection, reply = self._ask("POST", where, body, KIND)
        if reply.status != 200:
            raise RefusedError(reply.status, reply.read())
        assert "multipart" in reply.getheader("content-type", "")
        fields, files = self._read_form(reply)
        connection.close()
        told = fields["params"]
        name, data = next(iter(files.items()))
        path = self.folder / name
        path.write_bytes(data)
        return path, json.loads(told)

    def _ask(
        self, method: str, path: str, body: bytes | None, kind: str | None
    ) -> tuple[http.client.HTTPConnection, http.client.HTTPResponse]:
        headers = {"Authorization": f"Bearer {self.token}"} if self.token else {}
        if body is not None:
            headers |= {"content-type": kind or "", "content-length": str(len(body))}
        connection = http.client.HTTPConnection(self.host, timeout=120)
        connection.request(method, path, body=body, headers=headers)
        return connection, connection.getresponse()

    @staticmethod
    def _form(fields: dict[str, Any], files: dict[str, Path]) -> bytes:
        body = bytearray()
        for name, value in fields.items():
            body += f'--{BOUNDARY}\r\nContent-Disposition: form-data; name="{name}"\r\n\r\n'.encode()
            body += json.dumps(value).encode() + b"\r\n"
        for name, path in files.items():
            guessed = mimetypes.guess_type(path)[0] or "application/octet-stream"
            body += f'--{BOUNDARY}\r\nContent-Disposition: form-data; name="{name}"; filename="{path}"\r\n'.encode()
            body += f"Content-Type: {guessed}\r\n\r\n".encode() + path.read_bytes() + b"\r\n"
        return bytes(body + f"--{BOUNDARY}--\r\n\r\n".encode())

    @staticmethod
    def _read_form(reply: http.client.HTTPResponse) -> tuple[dict[str, Any], dict[str, bytes]]:
        """As the plugin: the socket's file itself goes to cgi, which knows nothing of chunks."""
        found = cgi.FieldStorage(
            fp=reply.fp, environ={"REQUEST_METHOD": "POST"}, headers=reply.msg, keep_blank_values=True
        )
        parts = list(found.list or [])
        fields = {part.name: part.value for part in parts if not part.filename}
        return fields, {part.filename: part.value for part in parts if part.filename}


KIND = f"multipart/form-data; boundary={BOUNDARY}"


def ohif_infer(
    host: str, model: str, series: str, *, output: str = "image", dtype: str = "uint8", origin: str = ""
) -> httpx.Response:
    """What OHIF's panel asks for; a browser writes the form, which has no file, and says of which page it is."""
    params = {
        "result_extension": ".nrrd",
        "result_dtype": dtype,
        "result_compress": False,
        "restore_label_idx": False,
    }
    return httpx.post(
        f"http://{host}/infer/{quote_plus(model)}",
        params={"image": series, "output": output},
        files={"params": (None, json.dumps(params))},
        headers={"accept": "application/json, multipart/form-data", **({"origin": origin} if origin else {})},
        timeout=120,
    )


def ohif_read(reply: httpx.Response) -> tuple[dict[str, Any], bytes]:
    """The parameters and the NRRD, found as the panel finds them: in the text that UTF-8 makes of the reply."""
    boundary = re.search(r"boundary=([^;]+)", reply.headers["content-type"], re.IGNORECASE)
    assert boundary
    text = reply.content.decode("utf-8", "replace")
    parts = [part for part in text.split(f"--{boundary[1]}") if part.strip()]
    told = next(part for part in parts if "Content-Type: application/json" in part)
    image = next(part for part in parts if "Content-Type: application/octet-stream" in part)
    params = json.loads(told[told.index("{") : told.rindex("}") + 1])
    data = image.split("\r\n\r\n")[1]
    return params, bytes(ord(letter) & 0xFF for letter in data[: data.rindex("\r\n")])


def ohif_segments(info: dict[str, Any], model: str) -> dict[int, str]:
    """The segments that the panel lists: the model's labels must be names with values."""
    labels = dict(info["models"][model]["labels"])
    labels.pop("background", None)
    return {int(value): name for name, value in labels.items()}


def slicer_segments(names: dict[str, int]) -> dict[int, str]:
    """The segments that Slicer makes of a label map: the n-th name, by value, is given to the value n."""
    ordered = [name for name, _ in sorted(names.items(), key=lambda item: item[1]) if name != "background"]
    return dict(enumerate(ordered, start=1))
