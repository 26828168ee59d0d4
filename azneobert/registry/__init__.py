"""The MLflow model registry: push a checkpoint as a version, find it by alias, pull it with every hash verified.

A version is one folder: the transformers export at its top, so that `from_pretrained` takes it as it is; the universal
checkpoint in ``checkpoint/``; ``README.md``, the model card; and ``manifest.json``, the hash of every other file.
"""
