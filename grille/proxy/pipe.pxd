import cython


cdef class Pipe


cdef class Turn:
    cdef object _loop
    cdef list _waiting

    cpdef void add(self, object sender) except *


cdef class Described:
    cdef public bint pending
    cdef public bint known
    cdef public bytes error
    cdef public bytes columns
    cdef public dict by_formats


cdef class Pipe:
    cdef public object connection
    cdef public object described
    cdef public object units
    cdef Turn _turn
    cdef object _on_free
    cdef public bint shared
    cdef object _stream
    cdef object _pipeline
    cdef list _out
    cdef object _rest
    cdef object _wanted_once
    cdef Py_ssize_t _wanted
    cdef public bint lost
    cdef object __weakref__

    @cython.locals(position=Py_ssize_t, size=Py_ssize_t, end=Py_ssize_t, length=Py_ssize_t, kind=cython.int)
    cpdef void received(self, bytes data) except *
    cdef void _message(self, int kind, bytes message) except *
    cpdef void send(self, object unit, bytes messages, object expectations) except *
    cpdef void flush(self) except *


cdef class SharedPipes:
    cdef public Turn turn
    cdef object _database
    cdef public double wait_seconds
    cdef object _loop
    cdef public dict _pipes
    cdef public dict _opening
    cdef dict _not_before
    cdef dict _running
    cdef object _waiting
    cdef list _releasing
    cdef set _tasks
    cdef bint _closing
    cdef public int opened
    cdef public int lost

    @cython.locals(pipe=Pipe, best=Pipe)
    cpdef Pipe choose(self, tuple profile)
    cpdef bint enter(self, Pipe pipe, str agent) except? -1
    cpdef void leave(self, str agent) except *
