"""An OpenAI-compatible endpoint as captioner: frames as JPEGs with their times, several requests under way at once.

Before the first caption the endpoint is asked about a clip whose answer is known: four plain frames. A server that
drops pictures, shuffles them or shows the model one of them alone answers fluently and wrong, which no caption tells.

Threads take requests from one queue and end with it. They are daemons: a job that is stopped does not wait for what is
under way. Left out: video parts of a message, other kinds of API, several endpoints."""

from __future__ import annotations

import hashlib
import json
import logging
import queue
import re
import threading
from collections import deque
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

from taro.core.errors import ModelError, TaroError
from taro.core.text import one_line, shortened, visible
from taro.grounding.prompts import load_template, parse_captions
from taro.preprocess.captioners.base import Failure, Request, after_reasoning
from taro.preprocess.captioners.endpoint import Endpoint
from taro.preprocess.captioners.imported import MAX_TEXT_BYTES
from taro.preprocess.captioners.pictures import FORM, PROBE, PROBE_COLOURS, content, probe_frames
from taro.preprocess.captioners.spending import Spending
from taro.preprocess.config import CaptionConfig

if TYPE_CHECKING:
    from taro.models.encoder import Encoder

__all__ = ["OpenAICaptioner", "checked_text", "endpoint_facts"]

log = logging.getLogger(__name__)

PROBE_TOKENS = 256
"""of the probe's answer, at least"""


class OpenAICaptioner:
    """See `taro.preprocess.captioners.base.StreamingCaptioner`; `facts`: those of `endpoint_facts`. Raises ConfigError
    without a key and where the endpoint refuses it, ModelError where it answers the probe wrong."""

    def __init__(self, config: CaptionConfig, facts: dict[str, Any], encoder: Encoder | None = None) -> None:
        self.prompt, self.fingerprint = str(facts["prompt"]), str(facts["fingerprint"])
        self._config, self._spending, self._served = config, Spending(config.budget), ""
        self._endpoint = Endpoint(config.endpoint, self._spending)
        if config.endpoint.probe:
            self._probe()

    @property
    def status(self) -> str:
        """Captions a minute and what they cost."""
        return self._spending.status

    def describe(self, requests: Sequence[Request]) -> list[str | Failure]:
        """One text or failure a request, in order."""
        answers = dict(self.describe_each(requests))
        return [answers[at] for at in range(len(requests))]

    def describe_each(self, requests: Sequence[Request]) -> Iterator[tuple[int, str | Failure]]:
        """(which request, its text or failure), as they come."""
        waiting, stop = deque(enumerate(requests)), threading.Event()
        come: queue.SimpleQueue[tuple[int, str | Failure | TaroError] | None] = queue.SimpleQueue()

        def work() -> None:
            try:
                while waiting and not stop.is_set():
                    try:
                        at, request = waiting.popleft()
                    except IndexError:  # another thread was faster
                        return
                    answer = self._answer(request, stop)
                    if isinstance(answer, TaroError):
                        stop.set()
                    come.put((at, answer))
            finally:
                come.put(None)

        threads = min(self._config.endpoint.concurrency, len(requests))
        for _ in range(threads):
            threading.Thread(target=work, daemon=True).start()
        ends: TaroError | None = None
        try:
            while threads:
                found = come.get()
                if found is None:
                    threads -= 1
                elif isinstance(found[1], TaroError):
                    ends = ends or found[1]
                else:
                    yield found[0], found[1]
        finally:
            stop.set()
        if ends is not None:
            raise ends

    def _answer(self, request: Request, stop: threading.Event) -> str | Failure | TaroError:
        frames, times_s, duration_s = request.cut()
        parts = content(frames, times_s.tolist(), duration_s, self.prompt, self._config.endpoint)
        try:
            reply = self._endpoint.ask(parts, stop, max_new_tokens=self._config.max_new_tokens)
        except TaroError as error:
            return error
        if isinstance(reply, Failure):
            return reply
        self._note(reply.model)
        return checked_text(reply.text, whole=request.whole)

    def _note(self, model: str) -> None:
        """Tells which model answers; warns where another one does than before."""
        if model and model != self._served:
            if self._served:
                log.warning("caption.endpoint: answers come from model %s now, before from %s", model, self._served)
            else:
                log.info("caption.endpoint: answers come from model %s", model)
            self._served = model

    def _probe(self) -> None:
        """Raises ModelError where the endpoint does not see four frames in their order."""
        config = self._config.endpoint
        frames, times_s = probe_frames()
        shown = config.model_copy(update={"max_images": max(config.max_images, len(frames))})
        reply = self._endpoint.ask(content(frames, times_s, float(len(frames)), PROBE, shown), threading.Event(),
                                   max_new_tokens=max(self._config.max_new_tokens, PROBE_TOKENS))
        where = f"caption.endpoint {config.base_url}, model {config.model!a}"
        if isinstance(reply, Failure):
            raise ModelError(f"{where}: no answer to the probe, a clip of four plain frames, but: {reply}. Check the "
                             "endpoint, the model and what it accepts (caption.endpoint.limit, temperature)")
        text = after_reasoning(reply.text)
        said = [] if isinstance(text, Failure) else re.findall("|".join(PROBE_COLOURS), text.lower())
        if said != [*PROBE_COLOURS]:
            raise ModelError(f"{where}: the probe shows frames of the colours {', '.join(PROBE_COLOURS)}, in this "
                             f"order; expected these words, got {shortened(one_line(str(text)))!r}. The model does not "
                             "see all frames in order; use another, or caption.endpoint.probe=false to go on all the "
                             "same")
        self._note(reply.model)


def checked_text(text: str, *, whole: bool) -> str | Failure:
    """What is kept of an answer: without reasoning and control characters, within what a shard holds. `whole`: it must
    have lines with times, unless it is empty.

    >>> checked_text("<think>hm</think> A door" + chr(27) + " opens. ", whole=False)
    'A door opens.'
    >>> checked_text("A door opens.", whole=True).reason
    'no times in the answer'
    """
    found = after_reasoning(text)
    if isinstance(found, Failure):
        return found
    found = "".join(char for char in found if visible(char) == char)
    lines = found.splitlines() if whole else [found]
    if any(len(line.encode()) > MAX_TEXT_BYTES for line in lines):
        return Failure("answer too long", transient=False, detail=f"a caption of over {MAX_TEXT_BYTES:,} bytes")
    if whole and found.strip() and not parse_captions(found):
        return Failure("no times in the answer", transient=False,
                       detail=f"no line of the form 'From 2.0s to 5.5s, ...' in {shortened(one_line(found))!r}")
    return found.strip()


def endpoint_facts(config: CaptionConfig, whole: bool, dtype: str) -> dict[str, Any]:
    """What makes the captions, from the settings alone: model, fingerprint, prompt; neither place nor key. `whole`: it
    is asked for whole clips."""
    template, endpoint = load_template(config.template or "taro"), config.endpoint
    prompt = config.prompt or (template.caption_prompt if whole else template.segment_prompt)
    said = [endpoint.model, endpoint.temperature, config.max_new_tokens, endpoint.image_px, endpoint.jpeg_quality,
            endpoint.max_images, FORM]
    return {"method": config.method, "model": endpoint.model,
            "fingerprint": f"openai:{hashlib.sha256(json.dumps(said).encode()).hexdigest()[:32]}",
            "prompt": prompt, "prompt_sha256": hashlib.sha256(prompt.encode()).hexdigest()}
