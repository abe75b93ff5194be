cimport cython


cdef bytes _varint(Py_ssize_t number)


@cython.locals(
    begin=Py_ssize_t, start=Py_ssize_t, value=Py_ssize_t, tag=Py_ssize_t, wire=Py_ssize_t, size=Py_ssize_t,
    shift=Py_ssize_t, byte=Py_ssize_t, pieces=list,
)
cdef object _cut(bytes data, Py_ssize_t at, Py_ssize_t end, dict table)
