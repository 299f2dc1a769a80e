"""Separate objects: routes from a dense model's logits to label maps, and how label maps are matched and scored.

An instance map is int32 [H,W]: 0 background, 1..n objects (any numbers, gaps allowed), -1 ignored.
"""
