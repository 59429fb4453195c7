"""What the parts of Switchgear agree on: configuration, ids, Arrow schemas, outcomes, errors.

This layer imports the standard library, pyarrow and pydantic only, and nothing of ours.
"""
