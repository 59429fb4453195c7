"""The quote: what a workload would cost, before it runs. No call is made and nothing is written.

`build.quote_workload` is the way in; `values` is what comes out; `compare` sets it against a finished run.
"""
