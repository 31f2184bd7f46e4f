"""`python -m taro ...` is `taro ...` (torchrun starts it so)."""

from __future__ import annotations

from taro.cli.app import main

__all__: list[str] = []

if __name__ == "__main__":
    main()
