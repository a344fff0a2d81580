"""The cache of paid answers and the ledger of what they cost, in one sqlite file.

One file, because "the answer is stored" and "it has been paid for" must become true in the same
transaction: a run killed between the two would either pay twice or forget a cost.
"""

from __future__ import annotations

import fcntl
import json
import sqlite3
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from lib.files import as_json

SCHEMA = """
CREATE TABLE IF NOT EXISTS answers (key TEXT PRIMARY KEY, request TEXT NOT NULL, answer TEXT NOT NULL);
CREATE TABLE IF NOT EXISTS attempts (id INTEGER PRIMARY KEY, key TEXT NOT NULL, role TEXT NOT NULL,
  model TEXT NOT NULL, state TEXT NOT NULL, tokens_in INTEGER, tokens_out INTEGER, usd REAL NOT NULL,
  started REAL NOT NULL, seconds REAL);
CREATE TABLE IF NOT EXISTS batches (token TEXT PRIMARY KEY, role TEXT NOT NULL, batch TEXT, state TEXT NOT NULL);
CREATE TABLE IF NOT EXISTS batch_items (token TEXT NOT NULL, key TEXT NOT NULL, request TEXT NOT NULL,
  attempt INTEGER NOT NULL);
"""  # noqa: E501


class BudgetExceeded(RuntimeError):
    """Raised before a request is sent whose worst case does not fit into what is left."""


class Store:
    """Answers by request key, and one row for every HTTP attempt, in the sqlite file `path`.

    An attempt is written as `open` at its worst-case cost before anything is sent and settled
    afterwards as `paid` (answer stored), `unusable` (answered, but not with what was asked for) or
    `refused` (the server declined, no charge). What stays `open` (a kill, a timeout, a dropped
    connection) may have been charged, so it goes on counting in full: the budget holds across kills
    and restarts. Safe for threads and for several processes.
    """

    def __init__(self, path: str | Path):
        self.path = Path(path)
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self._changed = threading.Condition()
        self._in_flight: set[int] = set()  # attempts of this Store that will still be settled
        self._db = sqlite3.connect(
            self.path, timeout=60, isolation_level=None, check_same_thread=False
        )
        try:
            self._db.execute("PRAGMA journal_mode=WAL")
            self._db.execute("PRAGMA synchronous=FULL")
            self._db.executescript(SCHEMA)
        except sqlite3.DatabaseError as error:
            reason = f"{self.path} is not an answer cache ({error}); move it away and run again"
            raise ValueError(reason) from error

    @contextmanager
    def only_one(self, key: str) -> Iterator[None]:
        """Hold the lock of a request: equal ones of threads and processes are paid for once.

        256 lock files, chosen by two digits of the key; the system drops the lock of a killed
        process.
        """
        folder = self.path.with_name(self.path.name + ".locks")
        folder.mkdir(exist_ok=True)
        with open(folder / key[:2], "w") as handle:
            fcntl.flock(handle, fcntl.LOCK_EX)
            yield

    def get(self, key: str) -> dict | None:
        """The stored answer, or None."""
        with self._changed:
            row = self._db.execute("SELECT answer FROM answers WHERE key = ?", (key,)).fetchone()
        return json.loads(row[0]) if row else None

    def spent(self, role: str | None = None) -> float:
        """USD that a role, or all, has cost so far; attempts without a known end count in full."""
        question = "SELECT coalesce(sum(usd), 0) FROM attempts WHERE role = coalesce(?, role)"
        with self._changed:
            return self._db.execute(question, (role,)).fetchone()[0]

    def reserve(self, key: str, role: str, model: str, worst_usd: float, budget_usd: float) -> int:
        """Set `worst_usd` aside and return the attempt's number.

        Waits while attempts in flight may free some. The budget is that of the file: all roles, all
        runs. Raises BudgetExceeded when the request cannot fit, whatever those in flight turn out
        to cost.
        """
        with self._changed:
            while True:
                self._db.execute("BEGIN IMMEDIATE")  # sum and insert are one step for every process
                try:
                    spent = self.spent()
                    if spent + worst_usd <= budget_usd + 1e-9:
                        row = (key, role, model, "open", worst_usd, time.time())
                        number = self._db.execute(
                            "INSERT INTO attempts (key, role, model, state, usd, started) "
                            "VALUES (?, ?, ?, ?, ?, ?)",
                            row,
                        ).lastrowid
                        self._db.execute("COMMIT")
                        self._in_flight.add(number)
                        return number
                    self._db.execute("ROLLBACK")
                except BaseException:
                    if self._db.in_transaction:
                        self._db.execute("ROLLBACK")
                    raise
                if not self._in_flight:
                    raise BudgetExceeded(
                        f"{role}: {spent:.4f} USD of {budget_usd:.4f} are spent, and the next"
                        f" request may cost {worst_usd:.4f}. All answers so far are kept in"
                        f" {self.path.name}; raise the budget and run again to go on from there."
                    )
                self._changed.wait(timeout=5)

    def settle(
        self,
        number: int,
        state: str,
        usd: float | None = None,
        tokens_in: int | None = None,
        tokens_out: int | None = None,
        keep: tuple[str, dict, dict] | None = None,
    ) -> None:
        """Close an attempt: `usd` None leaves the worst case; `keep` is (key, request, answer)."""
        with self._changed:
            self._db.execute("BEGIN IMMEDIATE")
            self._db.execute(
                "UPDATE attempts SET state = ?, usd = coalesce(?, usd), tokens_in = ?, tokens_out ="
                " ?, seconds = ? - started WHERE id = ?",
                (state, usd, tokens_in, tokens_out, time.time(), number),
            )
            if keep:
                key, request, answer = keep
                texts = (as_json(value, allow_nan=True) for value in (request, answer))
                self._db.execute("INSERT OR REPLACE INTO answers VALUES (?, ?, ?)", (key, *texts))
            self._db.execute("COMMIT")
            self._in_flight.discard(number)
            self._changed.notify_all()

    def lost(self, number: int) -> None:
        """Nobody will settle this attempt any more: it stays `open`, its worst case spent."""
        with self._changed:
            self._in_flight.discard(number)
            self._changed.notify_all()

    def open_batch(
        self, token: str, role: str, model: str, items: list[tuple], budget_usd: float
    ) -> int:
        """Set aside the worst cost of as many `items` as the budget holds, as one batch.

        items: (key, request, worst USD). Returns how many those are; the batch stands on disk under
        `token` before anything is sent. Unlike `reserve` this waits for nobody. Raises
        BudgetExceeded when not even the first item fits.
        """
        with self._changed:
            self._db.execute("BEGIN IMMEDIATE")
            try:
                left = budget_usd - self.spent() + 1e-9
                fitting = 0
                for *_, worst in items:
                    if worst > left:
                        break
                    left, fitting = left - worst, fitting + 1
                if not fitting:
                    raise BudgetExceeded(
                        f"{role}: {self.spent():.4f} USD of {budget_usd:.4f} are spent, and the"
                        f" next request of a batch may cost {items[0][2]:.4f}. All answers so far"
                        f" are kept in {self.path.name}; raise the budget and run again to go on"
                        " from there."
                    )
                self._db.execute("INSERT INTO batches VALUES (?, ?, NULL, 'new')", (token, role))
                for key, request, worst in items[:fitting]:
                    row = (key, role, model, "open", worst, time.time())
                    number = self._db.execute(
                        "INSERT INTO attempts (key, role, model, state, usd, started) "
                        "VALUES (?, ?, ?, ?, ?, ?)",
                        row,
                    ).lastrowid
                    text = json.dumps(request, ensure_ascii=False)
                    self._db.execute(
                        "INSERT INTO batch_items VALUES (?, ?, ?, ?)", (token, key, text, number)
                    )
                self._db.execute("COMMIT")
            except BaseException:
                self._db.execute("ROLLBACK")
                raise
        return fitting

    def batches(self, role: str) -> list[dict]:
        """The open batches of a role: {"token", "batch" (the server's id, or None), "state"}."""
        with self._changed:
            rows = self._db.execute(
                "SELECT token, batch, state FROM batches WHERE role = ? AND state != 'closed' "
                "ORDER BY rowid",
                (role,),
            ).fetchall()
        return [dict(zip(("token", "batch", "state"), row, strict=True)) for row in rows]

    def batch_items(self, token: str) -> dict[str, tuple[dict, int]]:
        """{key: (request, attempt)} of a batch."""
        with self._changed:
            rows = self._db.execute(
                "SELECT key, request, attempt FROM batch_items WHERE token = ?", (token,)
            ).fetchall()
        return {key: (json.loads(request), attempt) for key, request, attempt in rows}

    def name_batch(self, token: str, batch: str) -> None:
        """Keep the server's id of a batch: from here on a restart polls instead of sending."""
        with self._changed:
            self._db.execute(
                "UPDATE batches SET batch = ?, state = 'sent' WHERE token = ?", (batch, token)
            )

    def close_batch(self, token: str, outcomes: list[tuple]) -> None:
        """Settle everything a batch brought, and the batch, in one transaction.

        outcomes: (attempt, state, usd or None for the worst case, tokens_in, tokens_out, (key,
        request, answer) or None), as `settle` takes them. Attempts that are not named stay open and
        go on counting in full.
        """
        with self._changed:
            self._db.execute("BEGIN IMMEDIATE")
            for number, state, usd, tokens_in, tokens_out, keep in outcomes:
                self._db.execute(
                    "UPDATE attempts SET state = ?, usd = coalesce(?, usd), tokens_in = ?,"
                    " tokens_out = ?, seconds = ? - started WHERE id = ?",
                    (state, usd, tokens_in, tokens_out, time.time(), number),
                )
                if keep:
                    texts = (as_json(value, allow_nan=True) for value in keep[1:])
                    self._db.execute(
                        "INSERT OR REPLACE INTO answers VALUES (?, ?, ?)", (keep[0], *texts)
                    )
            self._db.execute("UPDATE batches SET state = 'closed' WHERE token = ?", (token,))
            self._db.execute("COMMIT")

    def rows(self, role: str) -> list[dict]:
        """The ledger of a role, a row a model and state: attempts, tokens_in, tokens_out, usd."""
        columns = ("role", "model", "state", "attempts", "tokens_in", "tokens_out", "usd")
        with self._changed:
            rows = self._db.execute(
                "SELECT role, model, state, count(*), coalesce(sum(tokens_in), 0), "
                "coalesce(sum(tokens_out), 0), round(sum(usd), 6) FROM attempts WHERE role = ? "
                "GROUP BY role, model, state ORDER BY model, state",
                (role,),
            ).fetchall()
        return [dict(zip(columns, row, strict=True)) for row in rows]

    def close(self) -> None:
        """Close the file. The Store cannot be used afterwards."""
        self._db.close()
