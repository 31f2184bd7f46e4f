"""Stage 2, the verbs of training: shards in, a Hugging Face checkpoint out.

`taro.train.loop` is the loop; each of its verbs is a module of small functions. `open` and `run_dir` are what happens
once, `algorithms` holds one file an algorithm. Nothing is imported here, so `import taro.train` costs nothing; no video
is decoded and no vision tower is loaded anywhere in this package."""
