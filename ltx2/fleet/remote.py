"""The official RunPod client, one endpoint of it, and the few things that can become of a call."""

import re
import threading
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Final

import requests
from requests.adapters import HTTPAdapter
from urllib3.exceptions import MaxRetryError, ProtocolError

from ltx2.errors import InvalidRequest
from ltx2.settings import Settings

Document = Mapping[str, Any]
"""A JSON object as it came: nothing in it is known to be right."""

RUN_SECONDS: Final = 60
"""For /run: what is sent may be ten megabytes, and an answer that came too late is a clip that nobody follows."""
STATUS_SECONDS: Final = 10
CANCEL_SECONDS: Final = 5
HEALTH_SECONDS: Final = 5

MOST_BYTES: Final = 100_000_000
"""Of an answer; RunPod's have 20 MB at most."""

ID: Final = r"^[A-Za-z0-9_.:-]{1,200}$"
"""What the id of a job looks like."""
_KEY: Final = re.compile(r"[!-~]+")


class Refused(Exception):
    """The answer was another than 2xx.

    Args:
        status: the HTTP status.
        answer: its JSON, None if it was none.
    """

    def __init__(self, status: int, answer: object = None) -> None:
        super().__init__(f"answered {status}")
        self.status = status
        self.answer = answer


class Unreached(Exception):
    """No connection was made, so nothing was sent."""


class Lost(Exception):
    """It was sent, perhaps, and no answer came."""


class Odd(Lost):
    """There was an answer of 2xx, and it is not RunPod's."""


class Remote:
    """One endpoint. Any thread may call it; each has a client of its own, since requests does not promise that
    a session can be shared.

    Raises:
        InvalidRequest: a setting is missing or wrong; the message names it.
    """

    def __init__(self, settings: Settings) -> None:
        if settings.runpod_endpoint is None:
            raise _missing("LTX2_RUNPOD_ENDPOINT", "the id of the endpoint, as RunPod's console shows it")
        if settings.runpod_api_key is None:
            raise _missing("RUNPOD_API_KEY", "a key of RunPod's that may use the endpoint")
        self._key = settings.runpod_api_key.get_secret_value().strip()
        if not _KEY.fullmatch(self._key):
            wrong = "the environment variable RUNPOD_API_KEY is wrong: it should be printable ASCII"
            raise InvalidRequest(wrong, field="RUNPOD_API_KEY")
        # takes a second and a half, and sets up logging where nobody has done that before
        from runpod.endpoint.runner import RunPodClient

        self._build: Callable[..., Any] = RunPodClient
        self._endpoint = settings.runpod_endpoint
        self._base = settings.runpod_base_url
        self._own = threading.local()
        self._lock = threading.Lock()
        self._clients: list[Any] = []

    def run(self, body: Document) -> str:
        """Send a job.

        Returns:
            Its id.

        Raises:
            Unreached: it was not begun.
            Refused: it was not begun.
            Lost: it may have been begun.
        """
        # A connection that was kept may turn out to be closed, and whether that was before or after it was used
        # cannot be told.
        client = self._client()
        try:
            answer = _ask(client.post, f"{self._endpoint}/run", body, RUN_SECONDS)
        finally:
            client.rp_session.close()
        job = answer.get("id")
        if not is_id(job):
            raise Odd("there is no id in it")
        return str(job)

    def status(self, job: str) -> Document:
        """What became of a job, with its output. Raises as :meth:`run`."""
        return _ask(self._kept().get, f"{self._endpoint}/status/{job}", STATUS_SECONDS)

    def cancel(self, job: str) -> None:
        """Have a job stopped. Raises as :meth:`run`."""
        _ask(self._kept().post, f"{self._endpoint}/cancel/{job}", None, CANCEL_SECONDS)

    def health(self) -> Document:
        """How the endpoint is. Raises as :meth:`run`."""
        return _ask(self._kept().get, f"{self._endpoint}/health", HEALTH_SECONDS)

    def close(self) -> None:
        """Close the connections that are not in use."""
        with self._lock:
            clients, self._clients = self._clients, []
        for client in clients:
            client.rp_session.close()

    def _kept(self) -> Any:
        """This thread's client."""
        if not hasattr(self._own, "client"):
            self._own.client = self._client()
            with self._lock:
                self._clients.append(self._own.client)
        return self._own.client

    def _client(self) -> Any:
        client = self._build(api_key=self._key)
        client.endpoint_url_base = (self._base or client.endpoint_url_base).rstrip("/")
        # Over plain HTTP it would try a refused connection for half a minute, and send again what was answered
        # with 429; here whoever asks decides.
        client.rp_session.mount("http://", HTTPAdapter())
        # With any auth of its own, even one that does nothing, a .netrc does not replace the key.
        client.rp_session.auth = lambda request: request
        # An endpoint has no reason to send anybody elsewhere, and the key belongs nowhere else.
        client.rp_session.max_redirects = 0
        client.rp_session.hooks["response"].append(_bound)
        return client


def is_id(job: object) -> bool:
    """Whether it can be the id of a job, and be asked for in a path."""
    return isinstance(job, str) and re.fullmatch(ID, job) is not None


class _Bounded:
    """The body of an answer as requests reads it, which comes to an end."""

    def __init__(self, raw: Any) -> None:
        self._raw = raw

    def stream(self, size: int, *, decode_content: bool) -> Iterator[bytes]:
        left = MOST_BYTES
        for part in self._raw.stream(size, decode_content=decode_content):
            left -= len(part)
            if left < 0:
                self._raw.close()
                raise ProtocolError("it does not end")
            yield part


def _bound(response: requests.Response, **_: object) -> None:
    response.raw = _Bounded(response.raw)


def _ask(call: Callable[..., Any], *arguments: object) -> Document:
    """One call of the client. Its errors hold URLs, so that nothing of them is kept."""
    try:
        answer = call(*arguments)
    except (requests.JSONDecodeError, RecursionError):
        raise Odd("it is no JSON") from None
    except RuntimeError:  # what the client makes of it
        raise Refused(401) from None
    except requests.HTTPError as error:
        raise _refused(error) from None
    except requests.TooManyRedirects as error:
        raise _refused(error) from None
    except (requests.exceptions.InvalidURL, requests.exceptions.InvalidSchema):
        raise Unreached("the URL cannot be used") from None
    except requests.RequestException as error:
        # without retries this is what becomes of all that goes wrong before something was sent
        if isinstance(error, requests.ConnectTimeout) or isinstance(next(iter(error.args), None), MaxRetryError):
            raise Unreached("there was no connection") from None
        raise Lost("there was no answer") from None
    except ValueError:  # numbers of thousands of digits, places that are no text
        raise Odd("it cannot be read") from None
    if not isinstance(answer, dict):
        raise Odd("it is no JSON object")
    return answer


def _refused(error: requests.RequestException) -> Refused:
    if error.response is None:
        return Refused(0)
    try:
        answer = error.response.json()
    except (ValueError, RecursionError):
        answer = None
    return Refused(error.response.status_code, answer)


def _missing(name: str, what: str) -> InvalidRequest:
    return InvalidRequest(f"the environment variable {name} is not set: {what}", field=name)
