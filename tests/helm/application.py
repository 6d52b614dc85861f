"""A small application as it runs beside a sidecar: `GET /x` here is `GET /x` at `POSTMAN_API_URL`.

It prints its port, answers what it has begun when it is told to end, and knows nothing of Keyturn.
"""

import os
import signal
import sys
import threading
import urllib.error
import urllib.request
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


class Handler(BaseHTTPRequestHandler):
    """Passes a request on."""

    def do_GET(self) -> None:
        """Answer as the API answers."""
        url = os.environ["POSTMAN_API_URL"] + self.path
        try:
            with urllib.request.urlopen(url, timeout=60) as answer:  # its scheme is the deployment's
                status, body = answer.status, answer.read()
        except urllib.error.HTTPError as error:
            status, body = error.code, error.read()
        except OSError as error:
            status, body = 599, str(error).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        """Say nothing."""


class Server(ThreadingHTTPServer):
    """Waits for its threads before it ends."""

    daemon_threads = False
    request_queue_size = 128


def main() -> None:
    """Serve until SIGTERM."""
    server = Server(("127.0.0.1", 0), Handler)
    signal.signal(signal.SIGTERM, lambda *_: threading.Thread(target=server.shutdown).start())
    sys.stderr.write(f"ready application=http://127.0.0.1:{server.server_port}\n")
    sys.stderr.flush()
    server.serve_forever(poll_interval=0.05)
    server.server_close()


if __name__ == "__main__":
    main()
