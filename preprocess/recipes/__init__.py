"""Recipes of stage 1: `taro preprocess NAME` reads NAME.yaml of this folder."""
