"""Moderators: whether a prompt is benign, by several models that vote."""
