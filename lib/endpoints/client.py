"""Chat with any OpenAI-compatible endpoint: answers cached, cost known, budget hard.

The `openai` package does the protocol and retries what was refused (429 with Retry-After, 5xx,
dropped connections); here are the cache, the ledger, the budget and the check that an answer is
what was asked for.
"""

from __future__ import annotations

import hashlib
import json
import os
import random
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path
from urllib.parse import urlsplit

from lib.endpoints import replies
from lib.endpoints.ledger import BudgetExceeded, Store

__all__ = ["BudgetExceeded", "Client", "EndpointError", "connect"]

OPENAI_URL = "https://api.openai.com/v1"
SETTINGS = {
    "messages",
    "max_tokens",
    "temperature",
    "top_p",
    "seed",
    "response_format",
    "reasoning_effort",
}
HOPELESS = 5  # failures without one answer: the endpoint is down or wrongly set, stop asking


class EndpointError(RuntimeError):
    """The endpoint cannot be used as configured; the message says what to change, never the key."""


class _Failed(Exception):
    """This one request has failed for good; others may succeed."""


class Client:
    """A model behind an endpoint, in a role (teacher, judge or reference).

    `base_url` "" means OPENAI_BASE_URL or OpenAI itself. The key comes from <ROLE>_API_KEY or
    OPENAI_API_KEY and from nowhere else; any address but OpenAI's may do without. `prices` maps
    model to (USD a million input tokens, USD a million output tokens): a missing or negative price
    is an error, 0 says it is free. `budget_usd` bounds all that was ever spent in `cache_path`, by
    any role, killed runs included.
    """

    def __init__(
        self,
        role: str,
        base_url: str,
        model: str,
        budget_usd: float,
        prices: dict[str, tuple[float, float]],
        cache_path: str | Path,
        concurrency: int = 8,
        *,
        timeout_s: float = 120.0,
        max_retries: int = 5,
        tries: int = 3,
    ):
        import openai

        self.role, self.model, self.budget_usd = role, model, float(budget_usd)
        self.base_url = (base_url or os.environ.get("OPENAI_BASE_URL") or OPENAI_URL).rstrip("/")
        url = urlsplit(self.base_url)
        if url.scheme not in ("http", "https") or not url.hostname or url.username or url.query:
            raise EndpointError(
                f"{role}: the base URL must look like https://host/v1, without a key in it"
            )
        price = prices.get(model)
        if price is None or len(price) != 2 or any(p is None or p < 0 for p in price):
            raise EndpointError(
                f"{role}: the price of model {model!r} is not known; set {role}_prices to "
                "USD a million tokens, in and out; 0 if it costs nothing"
            )
        self._price = (float(price[0]), float(price[1]))
        variable = f"{role.upper()}_API_KEY"
        self._key = os.environ.get(variable) or os.environ.get("OPENAI_API_KEY") or ""
        if not self._key and self.base_url == OPENAI_URL:
            raise EndpointError(
                f"{role}: no key; set the environment variable {variable} or OPENAI_API_KEY"
            )
        self.concurrency, self.tries = max(1, int(concurrency)), max(1, int(tries))
        self._unsupported: set[str] = set()  # settings the endpoint has refused: left out from then
        self._call = threading.local()  # key, worst cost and attempt of a thread's present request
        self.store = Store(cache_path)
        self._api = openai.OpenAI(
            api_key=self._key or "none",
            base_url=self.base_url,
            timeout=timeout_s,
            max_retries=max_retries,
            http_client=_metered(self),
        )

    def __repr__(self) -> str:
        return f"Client({self.role}, {self.model}, {self.base_url})"

    def key(self, request: dict) -> str:
        """SHA-256 of the whole request: address, model, messages and every setting."""
        if unknown := set(request) - SETTINGS:
            raise ValueError(
                f"unknown request setting {sorted(unknown)}; known are {sorted(SETTINGS)}"
            )
        if not request.get("messages") or int(request.get("max_tokens") or 0) < 1:
            raise ValueError("a request needs messages, and max_tokens to bound what it can cost")
        return hashlib.sha256(
            json.dumps(self.whole(request), sort_keys=True, ensure_ascii=False).encode()
        ).hexdigest()

    def worst_usd(self, request: dict) -> float:
        """The most one attempt can cost, in USD: there are never more tokens than bytes."""
        text = json.dumps([request["messages"], request.get("response_format")], ensure_ascii=False)
        template = 64 * len(request["messages"])  # room for the chat template
        tokens_in = len(text.encode()) + template
        return (tokens_in * self._price[0] + request["max_tokens"] * self._price[1]) / 1e6

    def chat(
        self, requests: list[dict], parse: Callable[[str], object] | None = None, label: str = ""
    ) -> list[dict]:
        """Answers in the order of the requests; equal ones are asked once, known ones not at all.

        A request is {"messages", "max_tokens"} and any of "temperature", "top_p", "seed",
        "response_format". `parse` turns the text into a value or raises ValueError, whereupon the
        request is tried again; only what it accepts is kept. Returns {"text", "finish", "model",
        "tokens_in", "tokens_out", "usd", "cached"} and "value" with `parse`. A request that failed
        for good gives {"error": reason}, never cached. Raises BudgetExceeded, or EndpointError
        where asking on is pointless (wrong key, unknown model, nothing but failures); what was
        answered until then is kept.
        """
        from tqdm import tqdm

        keys = [self.key(request) for request in requests]
        done: dict[str, dict] = {}
        with ThreadPoolExecutor(self.concurrency) as pool:
            unique = dict(zip(keys, requests, strict=True))
            futures = {
                pool.submit(self._one, key, request, parse): key for key, request in unique.items()
            }
            try:
                for future in tqdm(
                    as_completed(futures),
                    total=len(futures),
                    desc=label or self.role,
                    file=sys.stdout,
                    mininterval=5,
                    ascii=True,
                ):
                    done[futures[future]] = row = future.result()
                    if len(done) == HOPELESS and all("error" in row for row in done.values()):
                        raise EndpointError(
                            f"{self.role}: {HOPELESS} requests and no answer; {row['error']}"
                        )
            except BaseException:
                for future in futures:
                    # those in flight still end and are stored: they are being paid for
                    future.cancel()
                raise
        return [done[key] for key in keys]

    def spent(self) -> float:
        """USD of this role so far; attempts whose end is unknown count at their worst case."""
        return self.store.spent(self.role)

    def ledger(self) -> list[dict]:
        """Rows {role, model, state, attempts, tokens_in, tokens_out, usd}; states: see `Store`."""
        return self.store.rows(self.role)

    def _one(self, key: str, request: dict, parse: Callable | None) -> dict:
        with self.store.only_one(key):
            known = self.store.get(key)
            if known is not None:
                try:
                    value = {"value": parse(known["text"])} if parse else {}
                    return {**known, **value, "usd": 0.0, "cached": True}
                except ValueError:
                    pass  # stored under a laxer rule: ask again
            reason = ""
            for attempt in range(self.tries):
                if attempt:
                    time.sleep(min(8.0, 0.25 * 2**attempt) * (1 - 0.25 * random.random()))
                try:
                    return self._accept(key, request, self._send(key, request, attempt), parse)
                except _Failed as error:
                    return {"error": str(error)}
                except ValueError as error:
                    reason = f"{self.role}: {self.tries} unusable answers, the last: {error}"
            return {"error": self.clean(reason)}

    def body(self, request: dict, attempt: int = 0) -> dict:
        """What is sent: model and request, less what the endpoint refuses; another seed a try."""
        body = {"model": self.model, **request}
        if "seed" in request:
            body["seed"] = request["seed"] + attempt
        for name in self._unsupported & set(body):
            value = body.pop(name)
            if name == "max_tokens":
                body["max_completion_tokens"] = value  # the newer name of the same bound
        return body

    def _send(self, key: str, request: dict, attempt: int) -> str:
        """The body of a successful response, without the settings that the endpoint refuses."""
        import openai

        self._call.key, self._call.worst = key, self.worst_usd(request)
        while True:
            body = self.body(request, attempt)
            try:
                answer = self._api.chat.completions.with_raw_response.create(**body)
                return self.clean(answer.text)
            except (
                openai.AuthenticationError,
                openai.PermissionDeniedError,
                openai.NotFoundError,
            ) as error:
                advice = f"check base URL, model and {self.role.upper()}_API_KEY"
                reason = (
                    f"{self.role}: {self.base_url} refused model {self.model!r} ({error}); {advice}"
                )
                raise EndpointError(self.clean(reason)) from None
            except openai.OpenAIError as error:
                complains = getattr(error, "status_code", 0) in (400, 422)
                name = replies.unsupported(error, body) if complains else None
                if not name:
                    reason = f"{self.role}: {type(error).__name__}: {error}"
                    raise _Failed(self.clean(reason)) from None
                self._unsupported.add(name)

    def _accept(self, key: str, request: dict, body: str, parse: Callable | None) -> dict:
        """Settle the attempt, and store and return the answer; ValueError if it cannot be used."""
        answer, value, problem, used = replies.read(body, parse)
        usd = self.usd(used)
        keep = None if problem else (key, self.whole(request), answer)
        self.store.settle(
            self._call.attempt, "unusable" if problem else "paid", usd, *used, keep=keep
        )
        if problem:
            raise ValueError(problem)
        shown = {**answer, "usd": self._call.worst if usd is None else usd, "cached": False}
        return {**shown, "value": value} if parse else shown

    def usd(self, used: tuple) -> float | None:
        """USD of (tokens in, tokens out); None without usage: at most the worst case."""
        return None if None in used else (used[0] * self._price[0] + used[1] * self._price[1]) / 1e6

    def whole(self, request: dict) -> dict:
        """The request with what else names it: what its key is the hash of."""
        return {"base_url": self.base_url, "model": self.model, **request}

    def unmetered(self):
        """The openai client itself, for calls that cost nothing (files, state of batches)."""
        import openai

        return openai.OpenAI(
            api_key=self._key or "none",
            base_url=self.base_url,
            timeout=self._api.timeout,
            max_retries=self._api.max_retries,
        )

    def _reserve(self) -> int:
        return self.store.reserve(
            self._call.key, self.role, self.model, self._call.worst, self.budget_usd
        )

    def clean(self, text: str) -> str:
        """The text without the key, should an endpoint repeat it."""
        return text.replace(self._key, "[key]") if self._key else text


def connect(
    role: str,
    model: str,
    *,
    base_url: str,
    price: tuple[float, float] | list[float] | None,
    budget_usd: float,
    store: str | Path,
    concurrency: int = 8,
) -> Client | None:
    """The client of a role as a notebook's parameters name it; None where `model` is empty.

    price: USD a million tokens, in and out. store: the sqlite file of answers and costs. Connect
    before any work: a missing key or price is an EndpointError here and now.
    """
    if not model:
        return None
    prices = {} if price is None else {model: tuple(price)}
    return Client(role, base_url, model, budget_usd, prices, store, concurrency)


def _metered(client: Client):
    """An HTTP client that sets the worst cost aside before each attempt leaves, retries too."""
    import httpx2
    import openai

    class Metered(openai.DefaultHttpxClient):
        def send(self, request, **options):
            call, store = client._call, client.store
            call.attempt = client._reserve()
            try:
                response = super().send(request, **options)
            except (httpx2.ConnectError, httpx2.ConnectTimeout, httpx2.PoolTimeout):
                store.settle(call.attempt, "refused", 0.0)  # it never left
                raise
            except BaseException:
                store.lost(call.attempt)  # sent, and perhaps charged
                raise
            if response.status_code >= 400:
                store.settle(call.attempt, "refused", 0.0)
            return response

    return Metered()
