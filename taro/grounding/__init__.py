"""The vocabulary of temporal grounding: moments, boundaries, prompts, answers, protocols."""
