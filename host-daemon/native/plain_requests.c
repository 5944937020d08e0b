// SPDX-License-Identifier: Apache-2.0
/*
 * PlainRequests: serves the requests at the front of a ring that have the common form, and that no
 * special rule concerns. It leaves each other one in the ring, without having changed anything, for
 * the interpreter's code. So that code decides what is an error, and what the error is.
 */
#include "native.h"

static const char *const references[REFERENCES] = {
	[HANDLERS] = "handlers", [INODES] = "inodes", [BY_HOST_INODE] = "by_host_inode",
	[BY_KEY] = "by_key", [FILES] = "files", [COUNT_OF] = "count_of", [BUDGET] = "budget",
	[TOUCH] = "touch", [ADD] = "add", [RELEASE] = "release",
	[COUNT_DURATION] = "count_duration", [IMMEDIATE] = "immediate",
	[IF_IN_MEMORY] = "if_in_memory", [LOST] = "lost",
};

static long long monotonic_ns(void)
{
	struct timespec now;
	clock_gettime(CLOCK_MONOTONIC, &now);
	return now.tv_sec * 1000000000LL + now.tv_nsec;
}

/* Serve one request; return the bytes written, or LEAVE. */
static int64_t serve_one(PlainRequests *self, struct request *request)
{
	struct fuse_in_header *header = &request->header;
	if (request->chain.readable_size < IN_HEADER || request->chain.writable_size < OUT_HEADER)
		return LEAVE;
	copy_slices(request->chain.slices, 0, header, IN_HEADER, false);
	/* The last field is the length of extensions, in headers that know them. */
	uint32_t extensions, opcode = header->opcode;
	memcpy(&extensions, (uint8_t *)(header + 1) - sizeof(extensions), sizeof(extensions));
	if (opcode >= OPCODES || !((self->opcodes & self->known) >> opcode & 1) || extensions ||
	    header->len < IN_HEADER || header->len > request->chain.readable_size)
		return LEAVE;
	request->args_size = header->len - IN_HEADER;
	request->room = request->chain.writable_size - OUT_HEADER;
	/* A name may be as long as there is room for it, other arguments have their size. */
	if (request->args_size < operations[opcode].args_size ||
	    request->room < operations[opcode].reply_size ||
	    (operations[opcode].records && !can_record(self)) ||
	    (opcode == FUSE_LOOKUP && request->args_size > sizeof(request->in.name)))
		return LEAVE;
	copy_slices(request->chain.slices, IN_HEADER, &request->in,
		    opcode == FUSE_LOOKUP ? request->args_size : operations[opcode].args_size, false);
	PyObject *handler = find_number(self->references[HANDLERS], opcode);
	long long requests, errors;
	if (!handler || !get_number(handler, REQUESTS, &requests) ||
	    !get_number(handler, ERRORS, &errors))
		return LEAVE;
	bool timed = !((requests + 1) % SAMPLED);
	long long began = timed ? monotonic_ns() : 0;
	int64_t written = operations[opcode].serve(self, request);
	if (written == LEAVE)
		return LEAVE;
	set_number(handler, REQUESTS, requests + 1);
	if (request->error)
		set_number(handler, ERRORS, errors + 1);
	if (timed)
		Py_XDECREF(PyObject_CallFunction(self->references[COUNT_DURATION], "IL", opcode,
						 monotonic_ns() - began));
	PyErr_Clear();
	return written;
}

/*
 * Serve the plain requests at the front of a ring: `most` at most, and no further one when the
 * monotonic clock is past `until` (ns). Return how many. What is wrong with a ring or a chain, the
 * next pop() raises.
 */
static PyObject *plain_serve(PyObject *self, PyObject *args)
{
	PyObject *object;
	long most, served = 0;
	long long until;
	struct request request;
	if (!PyArg_ParseTuple(args, "OlL", &object, &most, &until))
		return NULL;
	if (!PyObject_TypeCheck(object, ring_type))
		most = 0;
	while (served < most) {
		Ring *ring = (Ring *)object;
		if (is_available(ring) <= 0)
			break;
		uint16_t head = next_head(ring);
		if (!find_chain(ring, head, &request.chain))
			break;
		int64_t written = serve_one((PlainRequests *)self, &request);
		if (written == LEAVE)
			break;
		ring->next_available++;
		put_used(ring, head, (uint32_t)written);
		served++;
		if (monotonic_ns() > until)
			break;
	}
	/* The interpreter's code meets the same error. */
	PyErr_Clear();
	return PyLong_FromLong(served);
}

static void plain_dealloc(PyObject *self)
{
	PyTypeObject *type = Py_TYPE(self);
	PlainRequests *plain = (PlainRequests *)self;
	for (int i = 0; i < REFERENCES; i++)
		Py_XDECREF(plain->references[i]);
	for (int i = 0; i < CHANGES; i++)
		Py_XDECREF(plain->changes[i]);
	if (plain->journal.buf)
		PyBuffer_Release(&plain->journal);
	if (plain->in_flight.buf)
		PyBuffer_Release(&plain->in_flight);
	((freefunc)PyType_GetSlot(type, Py_tp_free))(self);
	Py_DECREF(type);
}

static PyObject *plain_new(PyTypeObject *type, PyObject *args, PyObject *Py_UNUSED(kwargs))
{
	Py_ssize_t attr_size, times_size;
	const char *attr, *times, *proc;
	PyObject *objects;
	PlainRequests *self = (PlainRequests *)PyType_GenericAlloc(type, 0);
	if (!self)
		return NULL;
	if (!PyArg_ParseTuple(args, "O!y#y#siIpp:PlainRequests", &PyDict_Type, &objects, &attr,
			      &attr_size, &times, &times_size, &proc, &self->passed_flags,
			      &self->open_flags, &self->readonly, &self->announce_submounts))
		goto failed;
	for (int i = 0; i < REFERENCES; i++) {
		self->references[i] = Py_XNewRef(PyDict_GetItemString(objects, references[i]));
		if (!self->references[i]) {
			PyErr_SetString(PyExc_KeyError, references[i]);
			goto failed;
		}
	}
	if (attr_size != sizeof(self->attr_start) || times_size != sizeof(self->entry_times) ||
	    strlen(proc) >= sizeof(self->proc)) {
		PyErr_SetString(PyExc_ValueError, "a part of a reply has another size");
		goto failed;
	}
	memcpy(self->attr_start, attr, sizeof(self->attr_start));
	memcpy(self->entry_times, times, sizeof(self->entry_times));
	strcpy(self->proc, proc);
	for (int opcode = 0; opcode < OPCODES; opcode++)
		if (operations[opcode].serve)
			self->known |= 1ULL << opcode;
	return (PyObject *)self;
failed:
	Py_DECREF((PyObject *)self);
	return NULL;
}

static PyMethodDef plain_methods[] = {
	{"serve", plain_serve, METH_VARARGS, NULL},
	{"known_entry", plain_known_entry, METH_VARARGS, NULL},
	{"keep_journal", plain_keep_journal, METH_VARARGS, NULL},
	{"use_journal", plain_use_journal, METH_O, NULL},
	{"intend_entry", plain_intend_entry, METH_VARARGS, NULL},
	{"commit", plain_commit, METH_VARARGS, NULL},
	{0},
};
static PyMemberDef plain_members[] = {
	{"opcodes", T_ULONGLONG, offsetof(PlainRequests, opcodes), 0, NULL},
	{"known", T_ULONGLONG, offsetof(PlainRequests, known), READONLY, NULL},
	{0},
};
static PyType_Slot plain_slots[] = {
	{Py_tp_new, plain_new}, {Py_tp_dealloc, plain_dealloc},
	{Py_tp_methods, plain_methods}, {Py_tp_members, plain_members}, {0, NULL},
};
PyType_Spec plain_spec = {
	.name = "farwatchd._native.PlainRequests", .basicsize = sizeof(PlainRequests),
	.flags = Py_TPFLAGS_DEFAULT, .slots = plain_slots,
};
