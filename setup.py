"""The hot path as C extensions of the same source; everything else is in pyproject.toml.

``GRILLE_PLAIN=1`` builds without them.  `make build` compiles in place, `make wheels` makes a wheel of each kind.
"""

from __future__ import annotations

import os

from setuptools import Extension, setup

HOT = """
    protocols/postgres/framing protocols/postgres/messages protocols/postgres/state protocols/postgres/pipeline
    protocols/postgres/lexer protocols/postgres/codecs protocols/postgres/bare tokenization/ff1
    audit/chain audit/records audit/encoding audit/fused audit/spool
    proxy/relay proxy/fastpath proxy/pipe proxy/stream proxy/recorder proxy/services proxy/telemetry proxy/enforcement
""".split()


def extensions() -> list[Extension]:
    """The modules to compile; types are declared in the ``.pxd`` beside each, not read off annotations."""
    if os.environ.get("GRILLE_PLAIN"):
        return []
    from Cython.Build import cythonize

    modules = [
        Extension(f"grille.{name.replace('/', '.')}", [f"grille/{name}.py"], extra_compile_args=["-O2", "-g0"])
        for name in HOT
    ]
    directives = {"language_level": 3, "annotation_typing": False}
    found: list[Extension] = cythonize(modules, compiler_directives=directives, nthreads=2, quiet=True)
    return found


setup(ext_modules=extensions())
