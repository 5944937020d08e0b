// SPDX-License-Identifier: Apache-2.0
/* The ring: the base of virtqueue/native_ring.py. It does what virtqueue/ring.py does. */
#include "native.h"

/* A field of the used ring, by its position in units of two bytes. */
static uint16_t *used_field(Ring *ring, size_t position)
{
	return (uint16_t *)(void *)ring->used + position;
}

static void ring_dealloc(PyObject *self)
{
	Ring *ring = (Ring *)self;
	PyTypeObject *type = Py_TYPE(self);
	while (ring->buffer_count)
		PyBuffer_Release(&ring->buffers[--ring->buffer_count]);
	PyMem_Free(ring->buffers);
	PyMem_Free(ring->regions);
	Py_XDECREF(ring->chain);
	Py_XDECREF(ring->error);
	((freefunc)PyType_GetSlot(type, Py_tp_free))(self);
	Py_DECREF(type);
}

/* Get the memory: a tuple of views, of the three parts and the regions; the regions' starts. */
static bool get_memory(Ring *ring, PyObject *views, PyObject *starts)
{
	Py_ssize_t count = PyTuple_Size(views);
	ring->buffers = PyMem_Calloc((size_t)count, sizeof(*ring->buffers));
	ring->regions = PyMem_Calloc((size_t)count, sizeof(*ring->regions));
	if (!ring->buffers || !ring->regions)
		return PyErr_NoMemory();
	for (Py_ssize_t i = 0; i < count; i++) {
		Py_buffer *buffer = &ring->buffers[i];
		/* Neither descriptors nor the available ring are written to. */
		if (PyObject_GetBuffer(PyTuple_GetItem(views, i), buffer,
				       i < 2 ? PyBUF_SIMPLE : PyBUF_WRITABLE))
			return false;
		ring->buffer_count++;
		if (i >= 3)
			ring->regions[ring->region_count++] = (struct region){
				.start = PyLong_AsUnsignedLongLong(PyTuple_GetItem(starts, i - 3)),
				.size = (uint64_t)buffer->len,
				.base = buffer->buf,
			};
	}
	ring->last_region = ring->regions;
	return count >= 3 && !PyErr_Occurred();
}

/* Whether a part of the ring has its size, and is aligned. */
static bool is_part(const Py_buffer *part, Py_ssize_t size, uintptr_t alignment)
{
	return part->len >= size && !((uintptr_t)part->buf % alignment);
}

/* ValueError: a part is misaligned here, or too short. */
static PyObject *ring_new(PyTypeObject *type, PyObject *args, PyObject *Py_UNUSED(kwargs))
{
	PyObject *views, *starts, *chain, *error;
	int size, base, used, event_idx, indirect;
	if (!PyArg_ParseTuple(args, "O!O!iiippOO:Ring", &PyTuple_Type, &views, &PyTuple_Type,
			      &starts, &size, &base, &used, &event_idx, &indirect, &chain, &error))
		return NULL;
	Ring *ring = (Ring *)PyType_GenericAlloc(type, 0);
	if (!ring || !get_memory(ring, views, starts))
		goto failed;
	if (size <= 0 || size > 1 << 15 || size & (size - 1) ||
	    !is_part(&ring->buffers[0], 16 * size, 1) ||
	    !is_part(&ring->buffers[1], 2 * size + (event_idx ? 6 : 4), 2) ||
	    !is_part(&ring->buffers[2], 8 * size + (event_idx ? 6 : 4), 4)) {
		PyErr_SetString(PyExc_ValueError, "not the parts of a ring");
		goto failed;
	}
	ring->chain = Py_NewRef(chain);
	ring->error = Py_NewRef(error);
	ring->size = (uint16_t)size;
	ring->event_idx = event_idx;
	ring->indirect = indirect;
	ring->descriptors = ring->buffers[0].buf;
	ring->available = ring->buffers[1].buf;
	ring->used = ring->buffers[2].buf;
	ring->next_available = ring->seen_available = (uint16_t)base;
	ring->next_used = used < 0 ? load_index(used_field(ring, 1)) : (uint16_t)used;
	ring->notified = -1;
	return (PyObject *)ring;
failed:
	Py_XDECREF((PyObject *)ring);
	return NULL;
}

/* Return whether there are available chains; -1, with an exception, for an impossible index. */
static int read_available_index(Ring *ring)
{
	uint16_t seen = load_index(ring->available + 1);
	uint16_t ahead = (uint16_t)(seen - ring->next_available);
	uint16_t in_flight = (uint16_t)(ring->next_available - ring->next_used);
	if (ahead > ring->size) {
		PyErr_Format(ring->error, "available index %d is %d ahead of %d in a ring of %d",
			     seen, ahead, ring->next_available, ring->size);
		return -1;
	}
	if (ahead && ahead + in_flight > ring->size) {
		/* Each chain in flight takes memory. A driver could offer one again and again. */
		PyErr_Format(ring->error,
			     "available index %d is %d ahead, and %d of %d chains are in flight",
			     seen, ahead, in_flight, ring->size);
		return -1;
	}
	ring->seen_available = seen;
	return ahead != 0;
}

uint16_t next_head(Ring *ring)
{
	uint16_t head, slot = ring->next_available & (uint16_t)(ring->size - 1);
	copy_once(&head, ring->available + 2 + slot, sizeof(head));
	return head;
}

void put_used(Ring *ring, uint32_t head, uint32_t written)
{
	struct vring_used_elem element = {head, written};
	size_t slot = ring->next_used & (ring->size - 1U);
	memcpy(ring->used + 4 + sizeof(element) * slot, &element, sizeof(element));
	store_index(used_field(ring, 1), ++ring->next_used);
}

/* Return whether there is a chain to pop; the index is read when all that it showed is popped. */
int is_available(Ring *ring)
{
	return ring->next_available != ring->seen_available ? 1 : read_available_index(ring);
}

static PyObject *ring_pop(PyObject *self, PyObject *Py_UNUSED(none))
{
	Ring *ring = (Ring *)self;
	int more = is_available(ring);
	if (more < 0)
		return NULL;
	if (!more)
		Py_RETURN_NONE;
	uint16_t head = next_head(ring);
	PyObject *chain = PyObject_CallFunction(ring->chain, "i", (int)head);
	if (!chain)
		return NULL;
	ring->next_available++;
	return Py_BuildValue("iN", (int)head, chain);
}

static bool has_more(Ring *ring)
{
	return load_index(ring->available + 1) != ring->next_available;
}

static PyObject *ring_has_more(PyObject *self, PyObject *Py_UNUSED(none))
{
	return PyBool_FromLong(has_more((Ring *)self));
}

static PyObject *ring_add_used(PyObject *self, PyObject *args)
{
	unsigned long head, written;
	if (!PyArg_ParseTuple(args, "kk", &head, &written))
		return NULL;
	put_used((Ring *)self, (uint32_t)head, (uint32_t)written);
	Py_RETURN_NONE;
}

/* Needs a fence before, after the last store to the used ring. */
static bool wants_interrupt(Ring *ring)
{
	int32_t old = ring->notified;
	ring->notified = ring->next_used;
	if (old == ring->next_used)
		return false;
	if (!ring->event_idx)
		return !(load_index(ring->available) & VRING_AVAIL_F_NO_INTERRUPT);
	return old < 0 || vring_need_event(load_index(ring->available + 2 + ring->size),
					   ring->next_used, (uint16_t)old);
}

static PyObject *ring_needs_notification(PyObject *self, PyObject *Py_UNUSED(none))
{
	__atomic_thread_fence(__ATOMIC_SEQ_CST);
	return PyBool_FromLong(wants_interrupt((Ring *)self));
}

/* Ask for kicks. What the driver has made available is read after that. */
static void ask_for_kicks(Ring *ring)
{
	if (ring->event_idx)
		store_index(used_field(ring, 2 + 4 * (size_t)ring->size), ring->next_available);
	else
		store_index(used_field(ring, 0), 0);
	__atomic_thread_fence(__ATOMIC_SEQ_CST);
}

static PyObject *ring_enable_notification(PyObject *self, PyObject *Py_UNUSED(none))
{
	ask_for_kicks((Ring *)self);
	int more = read_available_index((Ring *)self);
	return more < 0 ? NULL : PyBool_FromLong(more);
}

static PyObject *ring_go_idle(PyObject *self, PyObject *Py_UNUSED(none))
{
	ask_for_kicks((Ring *)self);
	int more = has_more((Ring *)self) ? read_available_index((Ring *)self) : 0;
	bool interrupt = wants_interrupt((Ring *)self);
	if (more < 0)
		return NULL;
	return Py_BuildValue("NN", PyBool_FromLong(more), PyBool_FromLong(interrupt));
}

static PyObject *ring_disable_notification(PyObject *self, PyObject *Py_UNUSED(none))
{
	if (!((Ring *)self)->event_idx)
		store_index(used_field((Ring *)self, 0), VRING_USED_F_NO_NOTIFY);
	Py_RETURN_NONE;
}

static PyMethodDef ring_methods[] = {
	{"pop", ring_pop, METH_NOARGS, NULL},
	{"has_more", ring_has_more, METH_NOARGS, NULL},
	{"add_used", ring_add_used, METH_VARARGS, NULL},
	{"needs_notification", ring_needs_notification, METH_NOARGS, NULL},
	{"enable_notification", ring_enable_notification, METH_NOARGS, NULL},
	{"go_idle", ring_go_idle, METH_NOARGS, NULL},
	{"disable_notification", ring_disable_notification, METH_NOARGS, NULL},
	{0},
};
static PyMemberDef ring_members[] = {
	{"base", T_USHORT, offsetof(Ring, next_available), 0, NULL},
	{"seen", T_USHORT, offsetof(Ring, seen_available), 0, NULL},
	{"used", T_USHORT, offsetof(Ring, next_used), READONLY, NULL},
	{0},
};
static PyType_Slot ring_slots[] = {
	{Py_tp_new, ring_new}, {Py_tp_dealloc, ring_dealloc},
	{Py_tp_methods, ring_methods}, {Py_tp_members, ring_members}, {0, NULL},
};
PyType_Spec ring_spec = {
	.name = "farwatchd._native.Ring", .basicsize = sizeof(Ring), .slots = ring_slots,
	.flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_BASETYPE,
};
