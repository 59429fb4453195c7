"""Providers' batch APIs: half the price, answers within a day, and nobody waiting for them.

::

    tickets.py    what workers leave: the requests of a batch that wait, as durable files
    outbox.py     the worker's side of them, behind the call engine
    jobs.py       one batch at a provider: its durable records, and where it stands by them
    packing.py    which tickets go into which job, within the provider's bounds
    leaders.py    who is sent of several that ask the same, and its answer for the others
    genai_jobs.py what Gemini and Vertex have in common
    clients.py    what a provider's batch API is asked; openai_api.py, anthropic_api.py, gemini_api.py,
                  vertex_api.py: through the SDKs
    results.py    a provider's result lines as ends of calls, and the spool that they are kept in
    sending.py    from an intended job to one at the provider, exactly once
    collecting.py from an ended job to ends of calls in the ledgers
    discount.py   what a batch answer costs
    driving.py    the steps of a run: collect first, submit last
    standing.py   what is open, for status, plan and budget
"""
