"""Beam graphs composed of transforms, and what starts them."""
