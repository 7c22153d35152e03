"""Chat models: identity, loading, templates, residual streams, interventions, vLLM, endpoints."""
