"""The probe: steering directions, margins, and the safety decision boundary of each language."""
