"""One question to an OpenAI-compatible endpoint: sent, tried again where that helps, its answer read with bounds.

The package openai builds the request and holds the connections; retries are ours, since each counts in the budget and a
wait that the endpoint asks for is bounded. Nothing of an answer is believed: its size is bounded while it is read, and
what does not have the form of an answer is asked for again. Redirects are not followed, since frames and key would go
elsewhere. The key stands in the client alone; should a server repeat it in a message, it is taken out.

Left out: streamed answers (they cost more parsing than they save waiting), and images of other forms."""

from __future__ import annotations

import importlib.util
import math
import os
import sys
import threading
import time
import weakref
from dataclasses import dataclass
from typing import Any

from taro.core.errors import ConfigError, MissingPackageError
from taro.core.http_dates import seconds_until
from taro.core.json import strict_json
from taro.core.text import one_line, shortened
from taro.preprocess.captioners.base import Failure
from taro.preprocess.captioners.spending import Spending, Tokens
from taro.preprocess.config import EndpointConfig

__all__ = ["Endpoint", "Reply", "check_installed", "retry_after_s"]

MAX_ANSWER_BYTES = 4 * 2**20
"""of a body, reasoning that some servers send beside the text included"""
MAX_ERROR_BYTES = 64 * 2**10
FIRST_WAIT_S = 0.5
"""before the second try, where the endpoint says nothing; doubled before each further one"""
AGAIN = {408, 409, 425, 429}
"""statuses, beside 500 and above, after which the same request may pass"""
ENDS = {401, 402, 403, 404, 405}
"""statuses that no other request can escape"""
FILTERS = {"content_filter", "content_policy_violation"}


@dataclass(frozen=True)
class Reply:
    """An answer: its text, and the name of the model that gave it, as the endpoint tells it."""

    text: str
    model: str


class _RefusedError(Exception):
    """An answer with another status than 200."""

    def __init__(self, status: int, body: bytes, wait_s: float | None) -> None:
        super().__init__(f"status {status}")
        self.status, self.body, self.wait_s = status, body, wait_s


class _RetryError(Exception):
    """A try that failed and may be repeated. `reason`: as of a Failure; `wait_s`: as the endpoint asks for."""

    def __init__(self, reason: str, detail: str, wait_s: float | None = None, *, answered: bool = False) -> None:
        super().__init__(detail)
        self.reason, self.wait_s, self.answered = reason, wait_s, answered


def check_installed() -> None:
    """Raises MissingPackageError where the package openai is not there: before a job, not at its first caption."""
    if importlib.util.find_spec("openai") is None:
        raise MissingPackageError("caption.method=openai needs the package openai, which is not installed; pip install "
                                  "'taro-vtg[openai]'")


class Endpoint:
    """A client, shared by threads. Raises ConfigError where the variable of the key is not set."""

    def __init__(self, config: EndpointConfig, spending: Spending) -> None:
        import openai

        self._config, self._spending, self._key = config, spending, _key(config.key_env)
        self._options: dict[str, Any] = {} if config.temperature is None else {"temperature": config.temperature}
        http = openai.DefaultHttpxClient(follow_redirects=False, event_hooks={"response": [_refuse]})
        # The package stands on httpx, from its third version on on httpx2: whichever it is, an error of it is a cut.
        library: Any = sys.modules[type(http).__mro__[1].__module__.partition(".")[0]]
        self._late: tuple[type[Exception], ...] = openai.APITimeoutError, library.TimeoutException
        self._cut: tuple[type[Exception], ...] = openai.APIConnectionError, library.HTTPError
        self._client = openai.OpenAI(api_key=self._key or "none", base_url=config.base_url, max_retries=0,
                                     timeout=config.timeout_s, http_client=http)
        weakref.finalize(self, http.close)

    def ask(self, parts: list[dict[str, Any]], stop: threading.Event, *, max_new_tokens: int) -> Reply | Failure:
        """The answer to a message, or why there is none. `stop`: set where nobody waits for it any more. Raises
        TaroError where no other question would fare better: a wrong key, no such model, the budget spent."""
        tries = 1 + self._config.max_retries
        for tried in range(1, tries + 1):
            if stop.is_set():
                break
            tokens, answered = None, True
            self._spending.begin()
            try:
                body = self._send(parts, max_new_tokens)
                tokens, reply = _read(body)
                return reply
            except _RetryError as error:
                again, answered = error, error.answered
            except _RefusedError as error:
                answered = False
                self._judge(error)
                again = _RetryError(f"status {error.status}", self._told(error), error.wait_s)
                if (lost := self._lost(error)) is not None:
                    return lost
            finally:
                self._spending.end(tokens, answered=answered)
            if tried == tries:
                return Failure(again.reason, transient=True, detail=f"{again}; {tries} tries")
            wait_s = FIRST_WAIT_S * 2.0 ** min(tried - 1, 16) if again.wait_s is None else again.wait_s
            stop.wait(min(wait_s, self._config.max_wait_s))
        return Failure("stopped", transient=True)

    def _send(self, parts: list[dict[str, Any]], max_new_tokens: int) -> bytes:
        """The body of an answer with status 200."""
        body, until_s = bytearray(), time.monotonic() + self._config.timeout_s
        asked: dict[str, Any] = {"messages": [{"role": "user", "content": parts}], "model": self._config.model,
                                 self._config.limit: max_new_tokens, **self._options}
        try:
            with self._client.chat.completions.with_streaming_response.create(**asked) as response:
                for chunk in response.iter_bytes(2**16):
                    body += chunk
                    if len(body) > MAX_ANSWER_BYTES:
                        raise _RetryError("answer too large", f"an answer of over {MAX_ANSWER_BYTES:,} bytes",
                                          answered=True)
                    if time.monotonic() > until_s:
                        raise _RetryError("no answer in time", f"no whole answer in {self._config.timeout_s:g} s")
        except self._late:
            raise _RetryError("no answer in time", f"no answer in {self._config.timeout_s:g} s") from None
        except self._cut as error:
            if isinstance(error.__cause__, _RefusedError):  # the package wraps it, in some versions
                raise error.__cause__ from None
            what = type(error.__cause__ or error).__name__
            raise _RetryError("connection lost", f"connection lost ({what})") from None
        return bytes(body)

    def _judge(self, refused: _RefusedError) -> None:
        """Raises ConfigError where no other request can pass."""
        status, config = refused.status, self._config
        where = f"caption.endpoint {config.base_url}"
        if 300 <= status < 400:
            raise ConfigError(f"{where}: answers {status}, a redirect, which is not followed, since frames and key "
                              "would go elsewhere; give the address that it redirects to")
        if status in {401, 403}:
            raise ConfigError(f"{where}: answers {status}: it does not accept the API key, which is read from the "
                              f"environment variable {config.key_env}, or not for model {config.model!a}")
        if status in ENDS or _code(refused.body) == "insufficient_quota":
            raise ConfigError(f"{where}: answers {self._told(refused)}. Check caption.endpoint.base_url (it mostly "
                              f"ends in /v1), caption.endpoint.model ({config.model!a}) and the account")

    def _lost(self, refused: _RefusedError) -> Failure | None:
        """What ends this question alone; None where it may be asked again."""
        if refused.status in AGAIN or refused.status >= 500:
            return None
        reason = "content filter" if _code(refused.body) in FILTERS else f"refused with status {refused.status}"
        return Failure(reason, transient=False, detail=self._told(refused))

    def _told(self, refused: _RefusedError) -> str:
        """Status and message, fit to show, without the key."""
        error = _error(refused.body)
        found = error.get("message")
        text = found if isinstance(found, str) else refused.body.decode("utf-8", "replace")
        text = text.replace(self._key, "[key]") if self._key else text
        return f"{refused.status}: {shortened(one_line(' '.join(text.split())))}"


def _key(variable: str | None) -> str:
    """The API key, "" where none is needed."""
    if variable is None:
        return ""
    key = os.environ.get(variable, "").strip()
    if not key.isascii() or not key.isprintable() or not key:
        raise ConfigError(f"caption.endpoint: the environment variable {variable} holds no API key; set it, name "
                          "another with caption.endpoint.key_env, or set that to null where the endpoint needs none")
    return key


def _refuse(response: Any) -> None:
    """A hook of the HTTP client: an answer that is none is read with a bound, and raised."""
    if response.status_code == 200:
        return
    body = bytearray()
    for chunk in response.iter_bytes(2**12):
        body += chunk
        if len(body) >= MAX_ERROR_BYTES:
            break
    response.close()
    wait_s = retry_after_s(response.headers, time.time())
    raise _RefusedError(response.status_code, bytes(body[:MAX_ERROR_BYTES]), wait_s)


def retry_after_s(headers: Any, now_s: float) -> float | None:
    """Seconds that an answer asks to wait; None where it does not say so. `now_s`: since 1970.

    >>> retry_after_s({"retry-after": "7"}, 0.0), retry_after_s({"retry-after-ms": "250"}, 0.0)
    (7.0, 0.25)
    >>> retry_after_s({"retry-after": "Thu, 01 Jan 1970 00:01:00 GMT"}, 50.0), retry_after_s({"retry-after": "-1"}, 0.0)
    (10.0, None)
    """
    for name, scale in (("retry-after-ms", 1e-3), ("retry-after", 1.0)):
        try:
            seconds = float(headers.get(name, "")) * scale
        except ValueError:
            continue
        return seconds if math.isfinite(seconds) and seconds >= 0 else None
    return seconds_until(headers.get("retry-after", ""), now_s)


def _read(body: bytes) -> tuple[Tokens | None, Reply | Failure]:
    """(tokens that the answer tells, its text or why there is none). Raises _RetryError where it has no such form."""
    try:
        answer = strict_json(body)
    except ValueError:
        raise _malformed("no JSON") from None
    choices = answer.get("choices") if isinstance(answer, dict) else None
    if not isinstance(choices, list) or not choices or not isinstance(choices[0], dict):
        raise _malformed("no choices")
    tokens, model, ended = _usage(answer.get("usage")), answer.get("model"), choices[0].get("finish_reason")
    message = choices[0].get("message")
    if not isinstance(message, dict) or not isinstance(message.get("content"), str | None):
        raise _malformed("no message with a text")
    text = message.get("content") or ""
    if ended == "content_filter":
        return tokens, Failure("content filter", transient=False, detail="the content filter ended the answer")
    if isinstance(message.get("refusal"), str) and not text:
        return tokens, Failure("refused", transient=False, detail=shortened(one_line(message["refusal"])))
    if ended == "length" and not text.strip():
        return tokens, Failure("no text within max_new_tokens", transient=False,
                               detail="the answer ended at caption.max_new_tokens before any text; raise it")
    return tokens, Reply(text, shortened(one_line(model)) if isinstance(model, str) else "")


def _malformed(what: str) -> _RetryError:
    return _RetryError("malformed answer", f"a malformed answer: {what}", answered=True)


def _usage(usage: Any) -> Tokens | None:
    if not isinstance(usage, dict):
        return None
    sent, said = usage.get("prompt_tokens"), usage.get("completion_tokens")
    fine = all(isinstance(count, int) and not isinstance(count, bool) and 0 <= count < 2**40 for count in (sent, said))
    return (int(sent), int(said)) if fine and sent is not None and said is not None else None


def _error(body: bytes) -> dict[str, Any]:
    """The error of a body, {} where it has none."""
    try:
        found = strict_json(body)
    except ValueError:
        return {}
    error = found.get("error", found) if isinstance(found, dict) else {}
    return error if isinstance(error, dict) else {"message": error}


def _code(body: bytes) -> str:
    return str(_error(body).get("code"))
