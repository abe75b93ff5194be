cimport cython


cdef class _Noise:
    cdef bytes _pool
    cdef Py_ssize_t _next

    cpdef bytes take(self, Py_ssize_t count)


cdef class _Clock:
    cdef long long _second
    cdef str _second_text
    cdef object _millisecond
    cdef str _millisecond_text

    @cython.locals(second=cython.longlong, microseconds=cython.longlong)
    cpdef str time(self, double seconds)

    @cython.locals(random=bytes, noise=str, text=str)
    cpdef str identifier(self, object seconds)


cdef _Noise _NOISE
cdef _Clock _CLOCK
cdef double _YEAR_9999
cdef double _ROUNDER

cdef str _timestamp(double seconds)
cpdef bytes encode_text(str text)
cpdef str timestamp(object seconds)
cpdef tuple salted(object value)
cpdef str event_id(object seconds)
