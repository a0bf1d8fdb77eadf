"""The supervisor's line to its server: readiness and model control over HTTP (which has no TLS to keep in step)."""

from __future__ import annotations

import http.client
from dataclasses import dataclass

from vitrail.errors import ServerError
from vitrail.triton.options import admin_header

_READY_TIMEOUT_S = 2.0


@dataclass(frozen=True, slots=True)
class Control:
    """One request a connection: a server that restarts leaves nothing to mend."""

    host: str
    port: int
    admin_key: str

    def is_ready(self) -> bool:
        """Whether the ports are open and every model is ready."""
        return self._answers("/v2/health/ready")

    def is_live(self) -> bool:
        """Whether the ports are open, which they are once every model is loaded or has failed."""
        return self._answers("/v2/health/live")

    def is_model_ready(self, model: str) -> bool:
        return self._answers(f"/v2/models/{model}/ready")

    def load(self, model: str, *, timeout_s: float) -> None:
        """Load and wait until it serves. Raises ServerError with the model's own reason."""
        self._manage(model, "load", timeout_s=timeout_s)

    def unload(self, model: str, *, timeout_s: float) -> None:
        self._manage(model, "unload", timeout_s=timeout_s)

    def _answers(self, path: str) -> bool:
        try:
            return self._request("GET", path, timeout_s=_READY_TIMEOUT_S)[0] == 200
        except OSError:
            return False

    def _manage(self, model: str, verb: str, *, timeout_s: float) -> None:
        try:
            status, body = self._request("POST", f"/v2/repository/models/{model}/{verb}", timeout_s=timeout_s)
        except OSError as error:
            raise ServerError(f"cannot {verb} '{model}': {error}") from error
        if status != 200:
            raise ServerError(f"cannot {verb} '{model}': {body[:500]}")

    def _request(self, method: str, path: str, *, timeout_s: float) -> tuple[int, str]:
        connection = http.client.HTTPConnection(self.host, self.port, timeout=timeout_s)
        try:
            connection.request(method, path, headers=admin_header(self.admin_key))
            response = connection.getresponse()
            return response.status, response.read().decode("utf-8", "replace")
        except http.client.HTTPException as error:
            raise OSError(f"no HTTP answer: {error!r}") from error
        finally:
            connection.close()
