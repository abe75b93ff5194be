cdef class Ready:
    cdef public object prepared
    cdef public object plan
    cdef public object named
    cdef public object command
    cdef public double expires
    cdef public double private_until
    cdef public double large_until
    cdef public bint writes
    cdef public bint shared
    cdef public int added
    cdef public bytes tail
    cdef public tuple decoded_columns
    cdef public tuple types
    cdef public bytes template
    cdef public bytes verdict


cdef class _Shape:
    cdef public tuple taken
    cdef public tuple kept
    cdef public tuple signed
