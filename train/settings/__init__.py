"""The settings of a training run, a file for what belongs together; `taro.train.config` puts them into one model."""
