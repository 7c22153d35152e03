"""Mending a model: training on preference pairs, or an edit of its weights."""
