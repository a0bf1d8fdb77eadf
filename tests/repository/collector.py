"""A collector of traces on this machine: what arrives, as spans."""

import json
import threading
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


class Collector:
    def __init__(self, port):
        self.url, self.status, self.requests = f"http://127.0.0.1:{port}", 200, []

    @property
    def spans(self):
        """(name of the instrumentation scope, span), as they came."""
        return [
            (scope["scope"]["name"], span)
            for _, _, body in list(self.requests)
            for resource in body["resourceSpans"]
            for scope in resource["scopeSpans"]
            for span in scope["spans"]
        ]

    def of(self, request_id):
        """The spans of our own that belong to a request: its own first."""
        own = [span for scope, span in self.spans if scope == "vitrail.decoder"]
        whole = [
            span
            for span in own
            if {"key": "triton.request_id", "value": {"stringValue": request_id}}
            in span.get("attributes", ())
        ]
        ids = {span["spanId"] for span in whole}
        return whole + [span for span in own if span["parentSpanId"] in ids]


@contextmanager
def collecting(port=0):
    class Handler(BaseHTTPRequestHandler):
        def do_POST(self):
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            collector.requests.append((self.path, self.headers, body))
            self.send_response(collector.status)
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, *_):
            pass

    with ThreadingHTTPServer(("127.0.0.1", port), Handler) as server:
        collector = Collector(server.server_port)
        threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
        yield collector
        server.shutdown()
