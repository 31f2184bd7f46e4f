"""Stage 2, the verbs of training: shards in, a Hugging Face checkpoint out.

`taro.train.loop` is the loop; each of its verbs is a module of small functions: `rollouts`, `disruption`, `rewards`,
`advantages`, `losses`, `curriculum`, `checkpoint`, `evaluate`, `trackers`. Nothing is imported here, so that
`import train` costs nothing; no video is decoded and no vision tower is loaded anywhere in this package.
"""

from __future__ import annotations

__all__: list[str] = []
