"""Decoding with one layer body for all layers: see `taro.models.decoder.generate`."""
