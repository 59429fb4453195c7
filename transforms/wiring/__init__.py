"""The Beam wiring: each stage of a batch's way as a DoFn over the functions of this layer.

::

    process.py      ProcessBatches, the chain of all stages; those that take one batch at a time
    reading.py      claims a batch and reads it, or waits until who has it is done
    calling.py      keeps enough batches with the call engine that it never runs dry
    embedding.py    gathers batches until they fill the embedder's shapes
    stage.py        what every stage does: it looks the worker up, and makes a batch's troubles its report
"""
