"""Prompt templates, one YAML file each; `taro.prompts.load_template` reads them by name."""
