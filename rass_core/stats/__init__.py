"""Statistics that several steps share: intervals, agreement, paired differences."""
