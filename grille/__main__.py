"""``python -m grille`` is the ``grille`` command."""

from grille.proxy.cli import main

if __name__ == "__main__":
    raise SystemExit(main())
