"""The Batch API: half the price for answers within a day; cache, ledger and budget of `client`.

What may go wrong here lasts for hours, so every step leaves a trace first: a batch stands on disk
under a token of ours before it is sent, the token goes along as metadata, and the server's id is
kept before the first poll. A run killed anywhere finds its batches again, by id or by token, and
nothing is sent, or paid, twice.
"""

from __future__ import annotations

import json
import time
import uuid
from collections.abc import Callable

from lib.endpoints import replies
from lib.endpoints.client import Client, EndpointError

ENDED = ("completed", "failed", "expired", "cancelled")
MOST_REQUESTS, MOST_BYTES = 50_000, 150_000_000  # the API's limits are 50,000 requests and 200 MB
DISCOUNT = 0.5  # price of a token in a batch, as a share of the price in a chat


def ask(
    client: Client,
    requests: list[dict],
    parse: Callable[[str], object] | None = None,
    label: str = "",
    *,
    discount: float = DISCOUNT,
    poll_s: float = 30.0,
    patience: int = 40,
) -> list[dict]:
    """`Client.chat` through the Batch API: the same rows, the same cache, nothing asked twice.

    discount: share of the chat price. poll_s: seconds between polls. patience: polls in a row that
    may fail before the run stops (the batch goes on without us; run again to collect it). The first
    unknown request goes through chat, at the full price, to learn which settings the endpoint
    refuses. An answer that `parse` refuses, and a request that expired or met a passing fault, is
    sent again, `client.tries` times in all; one that is refused for good gives {"error"}. Raises
    BudgetExceeded when not even one more request fits; what was answered is kept.
    """
    keys = [client.key(request) for request in requests]
    unique = dict(zip(keys, requests, strict=True))
    errors: dict[str, str] = {}
    before = {key for key in unique if _stored(client, key, parse)}
    with client.store.only_one("zz batches"):  # "zz" is the beginning of no key
        for known in client.store.batches(client.role):
            _resume(
                client, known, {key: parse for key in unique}, discount, poll_s, patience, errors
            )
        for attempt in range(client.tries):
            missing = [
                key for key in unique if not errors.get(key) and not _stored(client, key, parse)
            ]
            if attempt == 0 and missing:
                client.chat([unique[missing[0]]], parse, label=label or client.role)
                missing = [key for key in missing if not _stored(client, key, parse)]
            while missing:
                sent = _send(client, [(key, unique[key]) for key in missing], attempt, discount)
                parses = {key: parse for key in missing}
                _collect(
                    client, sent["token"], sent["batch"], parses, discount, poll_s, patience, errors
                )
                missing = missing[sent["items"] :]
    rows = []
    for key in keys:
        answer = _stored(client, key, parse)
        if not answer:
            reason = errors.get(key) or f"{client.role}: no usable answer in {client.tries} batches"
            rows.append({"error": reason})
        elif key in before:
            rows.append(answer | {"usd": 0.0, "cached": True})
        else:
            rows.append(answer | {"cached": False})
    return rows


def _stored(client: Client, key: str, parse) -> dict | None:
    """The stored answer if usable, with its "value" and, when a batch brought it, its "usd"."""
    known = client.store.get(key)
    if known is None:
        return None
    try:
        return {"usd": 0.0, **known, **({"value": parse(known["text"])} if parse else {})}
    except ValueError:
        return None


def _send(client: Client, items: list[tuple[str, dict]], attempt: int, discount: float) -> dict:
    """Put one batch on disk, then on its way: {"token", "batch", "items"}.

    items: how many of them the budget and the API allow.
    """
    token, lines, size = uuid.uuid4().hex, [], 0
    for key, request in items[:MOST_REQUESTS]:
        line = json.dumps(
            {
                "custom_id": key,
                "method": "POST",
                "url": "/v1/chat/completions",
                "body": client.body(request, attempt),
            },
            ensure_ascii=False,
        ).encode()
        size += len(line) + 1
        if lines and size > MOST_BYTES:
            break
        lines.append(line)
    priced = [
        (key, request, client.worst_usd(request) * discount) for key, request in items[: len(lines)]
    ]
    fitting = client.store.open_batch(token, client.role, client.model, priced, client.budget_usd)
    api = client.unmetered()
    try:
        file = api.files.create(
            file=(f"{token}.jsonl", b"\n".join(lines[:fitting]) + b"\n"), purpose="batch"
        )
        # a second try of our own could make a second batch, so a lost reply is looked up instead
        made = api.with_options(max_retries=0).batches.create(
            input_file_id=file.id,
            endpoint="/v1/chat/completions",
            completion_window="24h",
            metadata={"token": token},
        )
        batch = made.id
    except Exception as error:
        batch = _find(client, token)
        if batch is None:
            _release(client, token)
            reason = (
                f"{client.role}: the batch could not be sent ({type(error).__name__}: {error});"
                " nothing is owed"
            )
            raise EndpointError(client.clean(reason)) from None
    client.store.name_batch(token, batch)
    return {"token": token, "batch": batch, "items": fitting}


def _find(client: Client, token: str) -> str | None:
    """The server's id of the batch that carries our token, None if no such batch was made."""
    import openai

    try:
        for batch in client.unmetered().batches.list(limit=100):
            if (batch.metadata or {}).get("token") == token:
                return batch.id
    except openai.OpenAIError as error:
        reason = (
            f"{client.role}: cannot tell whether a batch was sent ({error}); run again when the"
            " endpoint answers"
        )
        raise EndpointError(client.clean(reason)) from None
    return None


def _release(client: Client, token: str) -> None:
    """Close a batch that never reached the server: none of it is owed."""
    client.store.close_batch(
        token,
        [
            (attempt, "refused", 0.0, None, None, None)
            for _, attempt in client.store.batch_items(token).values()
        ],
    )


def _resume(client, known: dict, parses: dict, discount, poll_s, patience, errors) -> None:
    """Take up a batch that a killed run has left; its answers to other questions are kept, too."""
    batch = known["batch"] or _find(client, known["token"])
    if batch is None:
        _release(client, known["token"])
        return
    client.store.name_batch(known["token"], batch)
    _collect(client, known["token"], batch, parses, discount, poll_s, patience, errors)


def _collect(
    client, token: str, batch: str, parses: dict, discount, poll_s, patience, errors
) -> None:
    """Wait for a batch and settle all of it at once; what is refused for good goes into `errors`.

    parses: {key: parse} of what is asked for now; answers to anything else are kept as they are.
    """
    ended, files = _wait(client, batch, poll_s, patience)
    items, outcomes, settled = client.store.batch_items(token), [], set()
    for line in files:
        key = line.get("custom_id")
        if key not in items or key in settled:
            continue
        settled.add(key)
        request, attempt = items[key]
        response = line.get("response") or {}
        if response.get("status_code") == 200:
            body = client.clean(json.dumps(response.get("body")))
            answer, _, problem, used = replies.read(body, parses.get(key))
            usd = client.usd(used)
            usd = None if usd is None else usd * discount
            keep = None if problem else (key, client.whole(request), {**answer, "usd": usd})
            outcomes.append((attempt, "unusable" if problem else "paid", usd, *used, keep))
            continue
        outcomes.append((attempt, "refused", 0.0, None, None, None))
        if 400 <= response.get("status_code", 0) < 500 and response["status_code"] not in (
            408,
            409,
            429,
        ):
            reason = (response.get("body") or {}).get("error") or line.get("error")
            errors[key] = client.clean(f"{client.role}: refused in a batch: {reason}")
    if ended.status != "completed":  # then what has no line was not run, hence not charged
        outcomes += [
            (attempt, "refused", 0.0, None, None, None)
            for key, (_, attempt) in items.items()
            if key not in settled
        ]
    client.store.close_batch(token, outcomes)
    if ended.status == "failed":
        faults = (ended.errors.data if ended.errors else None) or []
        messages = "; ".join(str(fault.message) for fault in faults[:3])
        reason = f"{client.role}: the batch was refused whole: {messages}"
        raise EndpointError(client.clean(reason))


def _wait(client, batch: str, poll_s: float, patience: int):
    """(the ended batch, lines of its output and error files); lost connections are waited out."""
    import openai

    api, failures, shown = client.unmetered(), 0, ""
    while True:
        try:
            state = api.batches.retrieve(batch)
            counts = state.request_counts
            done = f", {counts.completed} of {counts.total}" if counts else ""
            progress = f"{client.role}: batch {state.status}{done}"
            if progress != shown:
                print(progress, flush=True)
                shown = progress
            if state.status in ENDED:
                names = [name for name in (state.output_file_id, state.error_file_id) if name]
                return state, [
                    line for name in names for line in _lines(api.files.content(name).text)
                ]
            failures = 0
        except (
            openai.APIConnectionError,
            openai.InternalServerError,
            openai.RateLimitError,
        ) as error:
            failures += 1
            if failures > patience:
                reason = (
                    f"{client.role}: {failures} polls of batch {batch} failed in a row ({error}); "
                    "its id is kept, run again to collect it"
                )
                raise EndpointError(client.clean(reason)) from None
        except openai.OpenAIError as error:
            reason = (
                f"{client.role}: batch {batch} cannot be read ({error}); its id is kept, check"
                " the key"
            )
            raise EndpointError(client.clean(reason)) from None
        time.sleep(poll_s * min(2**failures, 8))


def _lines(text: str) -> list[dict]:
    values = []
    for line in text.split("\n"):
        try:
            value = json.loads(line)
        except ValueError:
            continue  # a torn line settles nothing: its attempt goes on counting in full
        if isinstance(value, dict):
            values.append(value)
    return values
