"""The model side: families, loading and export, the language model, sampling, scoring, encoding."""
