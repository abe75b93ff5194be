"""The PostgreSQL frontend/backend protocol, version 3, without input or output.

Bytes go in, messages come out, and the other way round.  A session looks like this; the client is the agent,
upstream is the database, and every arrow to the right of Grille is a message that Grille itself composed:

    client                         Grille                               upstream
      | SSLRequest                   |                                      |
      |----------------------------->|                                      |
      | 'S', TLS handshake           |                                      |
      |<---------------------------->|                                      |
      | StartupMessage               |  (pooled connection, opened before)  |
      |----------------------------->|  SSLRequest, TLS, StartupMessage     |
      |                              |------------------------------------->|
      |                              |  AuthenticationSASL ... Ok           |
      |                              |<------------------------------------>|
      |                              |  ParameterStatus, BackendKeyData,    |
      | AuthenticationOk,            |  ReadyForQuery 'I'                   |
      | ParameterStatus,             |<-------------------------------------|
      | BackendKeyData,              |                                      |
      | ReadyForQuery 'I'            |                                      |
      |<-----------------------------|                                      |
      | Query                        |                                      |
      |----------------------------->|  Parse, Bind, Describe, Execute,     |
      |                              |  Sync                                |
      |                              |------------------------------------->|
      |                              |  ParseComplete, BindComplete,        |
      | RowDescription, DataRow...,  |  RowDescription, DataRow...,         |
      | CommandComplete,             |  CommandComplete, ReadyForQuery      |
      | ReadyForQuery                |<-------------------------------------|
      |<-----------------------------|                                      |
      | Parse, Bind, Describe,       |                                      |
      | Execute, Sync (one unit)     |                                      |
      |----------------------------->|  the same, rewritten                 |
      |                              |------------------------------------->|
      | ParseComplete, BindComplete, |  ...                                 |
      | RowDescription, ..., Ready   |<-------------------------------------|
      |<-----------------------------|                                      |
      | Terminate                    |                                      |
      |----------------------------->|  (the connection returns to a pool)  |

`framing` cuts the bytes into messages, `messages` gives them fields, `state` says which message a client may send
when, `pipeline` says which reply upstream may send when, `scram` proves Grille's password to upstream, and `codecs`
turns single values between their text and binary formats.

Source: PostgreSQL documentation, chapter "Frontend/Backend Protocol".
"""
