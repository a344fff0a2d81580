"""Models behind OpenAI-compatible endpoints: teacher, judge, reference, labeller.

Read `ledger` first: one sqlite file holds the answers that were paid for and every attempt with its
cost. `client` asks by chat on top of it: answers cached, retries bounded, a budget that stops
before it is exceeded. `batches` asks the same through the Batch API, for half the price within a
day. `replies` is what a reply holds. Keys come from the environment and are written nowhere.

Public: `client` (`connect`, `Client`, its errors), `batches` (`ask`, `DISCOUNT`), `ledger`
(`Store.spent`); `replies` is an inside. May import the ground of `lib` only; it imports none.
"""
