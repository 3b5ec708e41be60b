"""An S3 server on loopback (moto's), that can be killed, brought back, slowed down, and asked what it was asked.

As a program, `python -m tests.s3_server PORT FOLDER` serves the files of FOLDER as the objects of its bucket: killed
and started again, it has them again.
"""

import collections
import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import boto3  # type: ignore[import-untyped]
from moto.moto_server.werkzeug_app import DomainDispatcherApplication, MotoRequestHandler, create_backend_app
from werkzeug.serving import ThreadedWSGIServer

from tests.free_port import free_port

BUCKET = "cells"
_PIECE = 16 * 1024


class _Server(ThreadedWSGIServer):
    """Knows its connections, so that it can end as a killed process does: in the middle of an answer."""

    def __init__(self, *arguments: Any) -> None:
        self.connections: set[socket.socket] = set()
        super().__init__(*arguments)

    def get_request(self) -> tuple[socket.socket, Any]:
        connection, address = super().get_request()
        self.connections.add(connection)
        return connection, address

    def shutdown_request(self, request: Any) -> None:
        self.connections.discard(request)
        super().shutdown_request(request)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Connections that end early are what these tests are about."""


class _Handler(MotoRequestHandler):
    """Says nothing on the tests' stderr."""

    def log(self, *arguments: Any) -> None:
        """See above."""


class Bucket:
    """What a server's bucket holds, by a client of it."""

    client: Any

    def fill(self, folder: Path, prefix: str) -> None:
        """Put the files below a folder under a prefix."""
        for path in sorted(folder.rglob("*")):
            if path.is_file():
                self.put(f"{prefix}/{path.relative_to(folder).as_posix()}", path.read_bytes())

    def put(self, name: str, content: bytes) -> None:
        self.client.put_object(Bucket=BUCKET, Key=name, Body=content)

    def delete(self, name: str) -> None:
        self.client.delete_object(Bucket=BUCKET, Key=name)

    def objects(self, prefix: str) -> dict[str, bytes]:
        """The objects under a prefix, by the name that follows it."""
        listed = self.client.list_objects_v2(Bucket=BUCKET, Prefix=f"{prefix}/").get("Contents", [])
        names = [entry["Key"] for entry in listed]
        read = {name: self.client.get_object(Bucket=BUCKET, Key=name)["Body"].read() for name in names}
        return {name.removeprefix(f"{prefix}/"): content for name, content in read.items()}


class S3Server(Bucket):
    """The server and its bucket; what it holds outlives a kill."""

    def __init__(self, port: int | None = None) -> None:
        self._app = DomainDispatcherApplication(create_backend_app)
        self._port = free_port() if port is None else port
        self._server: _Server | None = None
        # (method, object's name) of each request, since it was last cleared; RANGE is a GET of a part.
        self.requests: list[tuple[str, str]] = []
        self.bytes_per_second: float | None = None
        self.start()
        self.client = _client(self._port)
        self.client.create_bucket(Bucket=BUCKET)

    @property
    def environment(self) -> dict[str, str]:
        """What a user's shell would have to reach it."""
        return _environment(self._port)

    def start(self) -> None:
        """Listen, at the same address each time."""
        self._server = _Server("127.0.0.1", self._port, self._answer, _Handler)
        threading.Thread(target=self._server.serve_forever, args=(0.01,), daemon=True).start()

    def kill(self) -> None:
        """Stop listening, and cut off every answer under way."""
        assert self._server is not None
        self._server.shutdown()
        self._server.server_close()
        for connection in list(self._server.connections):
            try:
                connection.shutdown(socket.SHUT_RDWR)
            except OSError:
                continue

    def clear(self) -> None:
        """Empty the bucket, and forget what was asked for."""
        for entry in self.client.list_objects_v2(Bucket=BUCKET).get("Contents", []):
            self.delete(entry["Key"])
        self.requests.clear()

    def count(self, method: str, ending: str) -> collections.Counter[str]:
        """How often objects whose names end so were asked for."""
        return collections.Counter(name for asked, name in self.requests if asked == method and name.endswith(ending))

    def _answer(self, environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
        method = "RANGE" if "HTTP_RANGE" in environ else environ["REQUEST_METHOD"]
        self.requests.append((method, environ["PATH_INFO"].removeprefix(f"/{BUCKET}/")))
        answer = self._app(environ, start_response)
        return answer if self.bytes_per_second is None else self._slowly(answer)

    def _slowly(self, answer: Iterable[bytes]) -> Iterator[bytes]:
        for content in answer:
            for first in range(0, len(content), _PIECE):
                piece = content[first : first + _PIECE]
                if self.bytes_per_second:
                    time.sleep(len(piece) / self.bytes_per_second)
                yield piece


class ServerProcess(Bucket):
    """A server in a process of its own, whose bucket holds a folder each time it is started."""

    def __init__(self, folder: Path) -> None:
        self._port = free_port()
        self._folder = folder
        self.url = f"s3://{BUCKET}/{folder.name}"
        self.environment = _environment(self._port)
        self.client = _client(self._port)
        self.start()

    def start(self) -> None:
        command = [sys.executable, "-m", "tests.s3_server", str(self._port), str(self._folder.resolve())]
        root = Path(__file__).resolve().parents[1]
        self._process = subprocess.Popen(command, cwd=root, stdout=subprocess.PIPE, text=True)
        assert self._process.stdout is not None
        assert self._process.stdout.readline() == "ready\n"

    def kill(self) -> None:
        """SIGKILL."""
        self._process.kill()
        self._process.wait()


def _client(port: int) -> Any:
    own = _environment(port)
    return boto3.client(
        "s3",
        endpoint_url=own["AWS_ENDPOINT_URL"],
        aws_access_key_id=own["AWS_ACCESS_KEY_ID"],
        aws_secret_access_key=own["AWS_SECRET_ACCESS_KEY"],
        region_name=own["AWS_DEFAULT_REGION"],
    )


def _environment(port: int) -> dict[str, str]:
    return {
        "AWS_ENDPOINT_URL": f"http://127.0.0.1:{port}",
        "AWS_ACCESS_KEY_ID": "test",
        "AWS_SECRET_ACCESS_KEY": "test",
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_EC2_METADATA_DISABLED": "true",
        # None of the user's own.
        "AWS_CONFIG_FILE": os.devnull,
        "AWS_SHARED_CREDENTIALS_FILE": os.devnull,
    }


if __name__ == "__main__":
    served = S3Server(int(sys.argv[1]))
    served.fill(Path(sys.argv[2]), Path(sys.argv[2]).name)
    print("ready", flush=True)
    threading.Event().wait()
