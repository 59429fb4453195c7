"""Texts to vectors, in JAX: model files, tokens, packed steps, the device that runs them.

Importing this package costs nothing; `embedder.open_embedder` is what first imports JAX.
"""
