"""Measuring a model before and after: rates, jailbreak attacks, utility benchmarks, the gate."""
