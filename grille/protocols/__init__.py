"""Sans-io protocols: bytes to messages to :class:`~grille.protocols.operation.Operation` and back.

Nothing below this package knows asyncio, ssl, sockets, clocks or logging.
"""
