"""The hosted call engine: many calls in flight, every answer in a ledger before it is used.

::

    engine.py       the thread-owning facade, and open_call_engine
    core.py         batches, workers, shutdown        (asyncio; no I/O of its own)
    document.py     one document along its chain of backends; each file below uses those after it only:
    replay.py           what the ledger has for it already
    identical.py        another row's answer to the same request
    calling.py          its calls to one backend, one after the other
    one_call.py         one of them: allowed, recorded, sent, settled
    question.py         what these share of a document; tally.py what it costs, desk.py what all share
    held.py, ended.py   no call: it waits for a provider's batch, or no more are made in this attempt
    book.py         one batch's ledger while it is open
    ports.py        what the core needs from outside: clock, transport, ledger store, budget record
    site.py         a backend made ready: codec, address, key, lane, price
    lane.py         who may call now, per (provider, model, key): permits, parking, closing; slots.py in all
    pace.py, quota.py, breaker.py, turns.py    its parts: rate, stated limits, outages, whose turn it is
    retry.py        which failure is tried again, when, and which goes to the next backend
    codecs.py       which of the wire formats a backend speaks, and where
    wire.py, classify.py, anthropic.py, openai.py, gemini.py, openai_embeddings.py, gemini_embeddings.py,
    vectors.py, structured.py    wire formats as pure functions
    repair.py       the one chance of an answer that does not fit the JSON Schema
    caching.py      shared prefixes: marked, ordered, filled by one request before the others
    ledger.py, ledger_totals.py, ledger_file.py    frames and their fold; sums; the local file
    budget.py, budget_record.py, budget_file.py    leases on the shared cap; its record; where it is
    budget_parts.py    the record in several parts, for more workers than one object in a bucket can serve
    caps.py, caps_file.py, centre.py    further caps: tokens, routes, a cost centre's month
    share.py, share_index.py    identical requests: who asks, who waits, what other processes know
    transport.py, connection.py    sockets and HTTP
    address.py, secret.py, vertex.py    addresses that may be reached, keys, tokens
"""
