"""Generated statements through Grille and under native row security: ``python -m tests.differential``.

`generator` writes them, `world` holds both sides, `compare` judges, `shrink` makes a difference small.
"""
