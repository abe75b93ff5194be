cdef class _Noise:
    cdef bytes _pool
    cdef Py_ssize_t _next

    cpdef bytes take(self, Py_ssize_t count)


cdef class _Clock:
    cdef object _second
    cdef str _text

    cpdef str text(self, object seconds)


cdef _Noise _NOISE
cdef _Clock _CLOCK

cpdef bytes encode_text(str text)
cpdef str timestamp(object seconds)
cpdef tuple salted(object value)
cpdef str event_id(object seconds)
