"""Prompt templates, one YAML file each; `taro.grounding.prompts.load_template` reads them by name."""
