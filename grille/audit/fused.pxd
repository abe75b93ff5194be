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
    object worker,
    object statement_bytes,
    bytes values,
    str status,
    str tag,
    object rows,
    object nbytes,
    object encoded,
    object decoded,
    object understand,
    object decide,
    object tokenize,
    object upstream,
    object total,
    str intent=*
)


@cython.locals(framed=list, leaves=list, entry=tuple, data=bytes)
cpdef tuple frame_events(object entries, object first)
