"""A client that knows no vitrail: tensors in over raw gRPC, whatever comes back out."""

import contextlib
import queue
from dataclasses import dataclass, field

import numpy as np
import tritonclient.grpc as triton
from tritonclient.utils import InferenceServerException

from vitrail.triton.processes import wait_until

DATATYPES = {
    "uint8": "UINT8",
    "int32": "INT32",
    "int64": "INT64",
    "float32": "FP32",
    "float64": "FP64",
    "object": "BYTES",
}


@dataclass(eq=False)
class Answer:
    """texts of the responses in order, and the error's message."""

    texts: list[str] = field(default_factory=list)
    deltas: list[str] = field(default_factory=list)
    error: str | None = None
    hung: bool = False

    @property
    def text(self):
        return "".join(self.texts)

    def wait_until_begun(self):
        """Until its first delta, or its error."""
        assert wait_until(lambda: self.deltas or self.error, within_s=60, every_s=0.005)


def text(value):
    return np.array([value if isinstance(value, bytes) else value.encode()], np.object_)


def ints(*values):
    return np.array(values, np.int32)


def tensor(name, value):
    array = value if isinstance(value, np.ndarray) else text(value)
    wire = triton.InferInput(name, list(array.shape), DATATYPES[str(array.dtype)])
    wire.set_data_from_numpy(array)
    return wire


def ask(url, model, *, request_id="", timeout_us=None, patience_s=60.0, inputs=(), answer=None, **tensors):
    """Send one request on a stream of its own and read it into `answer`, to its end, or while it says something every
    `patience_s`.
    """
    events, answer = queue.Queue(), answer or Answer()
    with triton.InferenceServerClient(url) as client:
        client.start_stream(lambda result, error: events.put((result, error)))
        with contextlib.suppress(
            InferenceServerException
        ):  # a stream that is broken already: its event tells why
            client.async_stream_infer(
                model,
                [*inputs, *(tensor(name, value) for name, value in tensors.items())],
                request_id=request_id,
                enable_empty_final_response=True,
                timeout=timeout_us,
            )
        while _read(events, answer, patience_s):
            pass
        client.stop_stream(cancel_requests=True)
    return answer


def _read(events, answer, patience_s):
    """Take one event; whether more are to come."""
    try:
        result, error = events.get(timeout=patience_s)
    except queue.Empty:
        answer.hung = True
        return False
    if error is not None:
        answer.error = str(error)
        return False
    for output, found in (("text_output", answer.texts), ("delta", answer.deltas)):
        if (value := result.as_numpy(output)) is not None:
            found.append(value[0].decode())
    return not result.get_response().parameters["triton_final_response"].bool_param
