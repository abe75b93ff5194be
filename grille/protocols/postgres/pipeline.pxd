import cython


cdef class Pipeline:
    cdef object _queue
    cdef int _stage
    cdef public str status

    @cython.locals(stage=cython.int)
    cpdef object received(self, int kind, bytes payload)
    cpdef void sent(self, object expectations) except *
    cdef void _skip(self) except *
