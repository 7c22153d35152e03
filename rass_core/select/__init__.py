"""Selecting prompts: eligible ones, their influence on each other, quotas."""
