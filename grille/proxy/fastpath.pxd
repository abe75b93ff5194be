import cython

from grille.proxy.enforcement cimport Ready
from grille.proxy.pipe cimport Pipe, SharedPipes, Turn


cdef class Lane
cdef class Unit


cdef class Item:
    cdef public Ready ready
    cdef public object plan
    cdef public bytes text
    cdef public tuple types
    cdef public object values
    cdef public bytes raw
    cdef public bytes wire
    cdef public bytes says
    cdef public bint unnamed
    cdef public bint simple
    cdef public bint describe
    cdef public object described
    cdef public bint known
    cdef public tuple result_formats
    cdef public bint swallow
    cdef public int hidden
    cdef public bint transformed
    cdef public long row_limit
    cdef public long byte_limit
    cdef public bint bound
    cdef public bytes head
    cdef public list body
    cdef public bytes tail
    cdef public list to_release
    cdef public long rows
    cdef public long nbytes
    cdef public int encoded
    cdef public long decoded
    cdef public str tag
    cdef public double tokenize
    cdef public str intent
    cdef public long counted


cdef class Unit:
    cdef public Lane lane
    cdef public list items
    cdef public bytes raw
    cdef public double began
    cdef public double clock
    cdef public double sent_at
    cdef public double answered_at
    cdef public Pipe pipe
    cdef public bint pooled
    cdef public bint local
    cdef public bint more
    cdef public bint again
    cdef public bytes error
    cdef public int failed
    cdef public object refusal
    cdef public object fields
    cdef public object outcome
    cdef public long upstream
    cdef public long total
    cdef public bint suspended
    cdef public bint cancelled
    cdef public bint cancelling
    cdef public object timed_out
    cdef public object timer
    cdef public str status
    cdef public int unkept
    cdef public bint ended
    cdef public bint decoded
    cdef public bint over
    cdef public long nbytes
    cdef public bint releases

    @cython.locals(item=Item, size=long)
    cpdef void reply(self, int kind, bytes payload, int number, bytes message) except *
    cpdef void finished(self, str status) except *
    cpdef void kept(self, object refusal) except *


cdef class Lane:
    cdef public object session
    cdef public object units
    cdef public SharedPipes shared
    cdef public object enforcement
    cdef public double active
    cdef public long buffered
    cdef object _agent
    cdef str _spiffe_id
    cdef double _not_after
    cdef object _pool
    cdef object _recorder
    cdef object _metrics
    cdef object _services
    cdef Turn _turn
    cdef object _loop
    cdef bytes _rest
    cdef object _decoding
    cdef list _redo
    cdef bint _failing
    cdef bint _slow
    cdef bint _stop
    cdef bint _waiting
    cdef double _wait_until
    cdef bint _waited
    cdef object _waiter
    cdef object _timer
    cdef list _out
    cdef long _entered
    cdef bint _closed
    cdef set _learned
    cdef object _settings
    cdef tuple _server_settings
    cdef dict _pieces
    cdef tuple _pieces_of

    cpdef void received(self, bytes data) except *
    @cython.locals(position=Py_ssize_t, size=Py_ssize_t, taken=Py_ssize_t)
    cpdef void _take(self) except *
    @cython.locals(position=Py_ssize_t, end=Py_ssize_t, length=Py_ssize_t, kind=cython.int, item=Item, generation=long, now=double, ready=Ready)
    cpdef Py_ssize_t _unit(self, bytes data, Py_ssize_t start, Py_ssize_t size) except? -7
    @cython.locals(ready=Ready)
    cpdef bint _bind(self, Item item, tuple formats, tuple result_formats) except? -1
    @cython.locals(unit=Unit)
    cpdef void _begin(self, Unit unit) except *
    @cython.locals(item=Item, number=cython.int, pipe=Pipe)
    cpdef void _send(self, Unit unit) except *
    @cython.locals(pipe=Pipe)
    cpdef void answered(self, Unit unit, str status) except *
    @cython.locals(item=Item, count=cython.int)
    cpdef void _record(self, Unit unit) except *
    cpdef void _submit_event(self, Unit unit, Item item, str ident, str status, object done, double now=*) except *
    cpdef void recorded(self, Unit unit) except *
    @cython.locals(unit=Unit, item=Item)
    cpdef void _advance(self) except *
    @cython.locals(item=Item, count=cython.int)
    cpdef void _count(self, Unit unit, double audited) except *
    cpdef void flush(self) except *


@cython.locals(size=Py_ssize_t, end=Py_ssize_t, position=Py_ssize_t, start=Py_ssize_t, length=Py_ssize_t, count=cython.int, parameters=cython.int)
cdef object _read_bind(bytes payload)
cpdef bytes _bind_message(str name, bytes wire)
cpdef bytes _values(object values, bytes tail, int added)
