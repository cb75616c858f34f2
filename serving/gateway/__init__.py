"""The chat gateway in front of vLLM."""
