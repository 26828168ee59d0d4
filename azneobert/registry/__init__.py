"""The MLflow model registry: push a checkpoint as a version, find it by alias, pull it with every hash verified.

A version is two folders. The one that MLflow's loaders and `from_pretrained` take as it is holds the encoder, its
tokenizer, ``README.md``, the model card, ``card.json``, what that is written from, ``golden.json``, and
``manifest.json``: the hash of every other file, and of the second folder, the universal checkpoint.
`publish` makes of a version the folder that is uploaded to a model hub.
"""
