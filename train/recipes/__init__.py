"""Training recipes that ship with taro, one YAML file each; `taro train NAME` reads them by name."""
