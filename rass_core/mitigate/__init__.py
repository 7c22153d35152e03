"""Mitigating over-refusal: preference pairs, LoRA training, ablation in the weights or at inference."""
