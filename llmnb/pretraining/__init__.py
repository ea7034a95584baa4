"""Pretraining: from a text to a model.

tokens.py makes token ids of a text, recipe.py holds the settings of a run, objectives.py the
losses, optimizers.py Muon and the learning rate, loop.py the training, checkpoint.py the files.
"""
