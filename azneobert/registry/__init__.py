"""The MLflow model registry: push a checkpoint as a version, find it by alias, pull it with every hash verified.

A version is two folders. MLflow's loaders and `from_pretrained` load the first one as it is. It holds the encoder, its
tokenizer, ``README.md`` (the model card), ``card.json`` (the facts behind the card), ``golden.json``, and
``manifest.json``: the hash of every other file, and of the second folder, the universal checkpoint.
`publish` turns a version into the folder that is uploaded to a model hub.
"""
