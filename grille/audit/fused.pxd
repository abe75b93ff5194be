cimport cython


@cython.locals(parts=list, known=Py_ssize_t, name=bytes)
cpdef bytes values_piece(object types, object values)


@cython.locals(outcome=str, size=str, head=str, completes=str, end=str)
cpdef tuple statement_event(
    bytes session,
    bytes template,
    bytes verdict,
    str ident,
    str time,
    long long worker,
    long long statement_bytes,
    bytes values,
    str status,
    str tag,
    long long rows,
    long long nbytes,
    long long encoded,
    long long decoded,
    long long understand,
    long long decide,
    long long tokenize,
    long long upstream,
    long long total,
    str intent=*
)


@cython.locals(framed=list, leaves=list, entry=tuple, data=bytes, before=bytes, after=bytes)
cpdef tuple frame_events(object entries, object first)
