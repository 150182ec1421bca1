"""A judge behind an OpenAI-compatible chat endpoint (OpenAI itself, vLLM, SGLang, Ollama, ...)."""

from __future__ import annotations

import base64
import io
import logging
import os
from collections.abc import Mapping
from typing import Any

import requests
from PIL import Image
from requests.adapters import HTTPAdapter
from urllib3.util import Retry

from hyperbagel.evaluation.gedit.questions import DEFAULT_MAX_TRIES, EditedPair, JudgeUnavailable, Question, ask_both
from hyperbagel.evaluation.gedit.samples import JudgeScore

logger = logging.getLogger(__name__)

_TRANSIENT = (408, 409, 429, 500, 502, 503, 504, 529)
_FILTERED = ("content_filter", "content_policy")
LONGEST_ANSWER = 1400  # tokens, as published
_LONGEST_WAIT = 60  # seconds; a server that asks for more counts as not answering


class OpenAIJudge:
    """VIEScore by an API model, as the benchmark asks it: text, then images as JPEG; the provider's own sampling.

    Not repeatable: the published figures move by about 0.1 between runs. The model that the endpoint says it used is
    kept in `version`. Rate limits, time-outs and server errors are tried again with growing pauses, `retries` times;
    then the answer counts as invalid (`transport`). A refusal of the request itself (wrong key, unknown model) raises
    ConnectionRefusedError at once. Safe to use from several threads.

    Args:
        model: name of the model, best a dated one.
        base_url: up to and including "/v1".
        api_key_env: environment variable that holds the key; None sends none.
        max_tries: most answers per question.
        timeout: seconds to wait for a connection, and again for an answer.
        retries: after rate limits, time-outs and server errors.
        options: what else goes into each request, {"max_tokens": 1400} as published by default (some models want
            "max_completion_tokens" instead).

    Raises ValueError if the URL is no http(s) URL or the key is not in the environment.
    """

    def __init__(
        self,
        model: str = "gpt-4.1-2025-04-14",
        base_url: str = "https://api.openai.com/v1",
        api_key_env: str | None = "OPENAI_API_KEY",
        max_tries: int = DEFAULT_MAX_TRIES,
        timeout: float = 120.0,
        retries: int = 5,
        options: Mapping[str, Any] | None = None,
    ) -> None:
        if not base_url.startswith(("http://", "https://")):
            raise ValueError(f"base_url {base_url!r} must begin with http:// or https://")
        self.name = model
        self.url = base_url.rstrip("/") + "/chat/completions"
        self.max_tries = max_tries
        self.options = {"max_tokens": LONGEST_ANSWER} if options is None else dict(options)
        self.timeout = timeout
        self._served_models: set[str] = set()
        self._session = requests.Session()
        self._session.headers.update(_authorization(api_key_env))
        retry = Retry(
            total=retries,
            allowed_methods={"POST"},
            status_forcelist=_TRANSIENT,
            backoff_factor=1.0,
            backoff_max=_LONGEST_WAIT,
            backoff_jitter=0.5,
            retry_after_max=_LONGEST_WAIT,
            raise_on_status=False,
        )
        self._session.mount(base_url, HTTPAdapter(max_retries=retry, pool_maxsize=32))

    @property
    def version(self) -> str:
        """The model or models that answered, as the endpoint names them."""
        return ", ".join(sorted(self._served_models)) or "unknown"

    def score(self, instruction: str, source: Image.Image, edited: Image.Image) -> JudgeScore:
        """Ask both questions; see `Judge`."""
        return ask_both(self.ask, EditedPair(instruction, source, edited), self.max_tries)

    def ask(self, question: Question) -> str:
        """The model's answer, "" if it gave none. Raises JudgeUnavailable if it could not be reached."""
        content: list[dict[str, Any]] = [{"type": "text", "text": question.text}]
        content += [{"type": "image_url", "image_url": {"url": jpeg_data_url(image)}} for image in question.images]
        body = {"model": self.name, "messages": [{"role": "user", "content": content}], **self.options}
        try:
            response = self._session.post(self.url, json=body, timeout=self.timeout, allow_redirects=False)
        except requests.RequestException as error:
            logger.warning("judge %s did not answer: %s", self.name, error)
            raise JudgeUnavailable(str(error)) from error
        return self._read(response)

    def _read(self, response: requests.Response) -> str:
        if response.status_code in _TRANSIENT:
            logger.warning("judge %s: HTTP %d, %s", self.name, response.status_code, response.text[:200])
            raise JudgeUnavailable(f"HTTP {response.status_code}")
        if response.status_code == requests.codes.bad_request and any(word in response.text for word in _FILTERED):
            return ""  # a content filter refused these images; the others may pass
        if response.status_code != requests.codes.ok:
            raise ConnectionRefusedError(
                f"{self.url}: HTTP {response.status_code} for model {self.name!r}: {response.text[:500]!r}; "
                "check base_url, model and the key"
            )
        try:
            data = response.json()
            answer = data["choices"][0]["message"]["content"]
        except (ValueError, LookupError, TypeError) as error:
            logger.warning("judge %s sent no chat completion: %s", self.name, response.text[:200])
            raise JudgeUnavailable("not a chat completion") from error
        self._served_models.add(str(data.get("model") or self.name))
        return answer if isinstance(answer, str) else ""


def jpeg_data_url(image: Image.Image) -> str:
    """An RGB image as JPEG (quality 75) in a data URL."""
    buffer = io.BytesIO()
    image.save(buffer, format="JPEG", quality=75)
    return "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode()


def _authorization(api_key_env: str | None) -> dict[str, str]:
    if api_key_env is None:
        return {}
    key = os.environ.get(api_key_env, "").strip()
    if not key:
        raise ValueError(
            f"environment variable {api_key_env} holds no API key; set it, "
            "or api_key_env: null for a server without keys"
        )
    return {"Authorization": f"Bearer {key}"}
