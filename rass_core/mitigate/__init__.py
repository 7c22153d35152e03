"""Mitigating over-refusal: preference pairs, LoRA training, weight ablation, steering at inference."""
