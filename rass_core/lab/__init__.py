"""The lab: a small world with a known truth and a small chat model that over-refuses in it."""
