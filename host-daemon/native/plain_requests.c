// SPDX-License-Identifier: Apache-2.0
/*
 * The optional native part (docs/decisions/0026-native-part.md): the ring, and plain requests.
 *
 * Ring is the base of virtqueue/native_ring.py, and does what virtqueue/ring.py does.
 *
 * PlainRequests serves the requests at the front of a ring that have the common form, and that no
 * special rule concerns. It leaves each other one in the ring, without having changed anything, for
 * the interpreter's code. So that code decides what is an error, and what the error is.
 *
 * The tables are the interpreter's; nothing of them is kept here. All functions are for the event
 * loop's thread, with the interpreter's lock. System calls that may wait release it.
 *
 * Guest memory changes at any time. copy_once() and load_index() are the only ways to look into it:
 * what they return is checked, then used, and not read again.
 */
#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif
#define PY_SSIZE_T_CLEAN
#ifndef Py_LIMITED_API
#define Py_LIMITED_API 0x030b0000
#endif
#include <Python.h>
#include <structmember.h>

#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <linux/fuse.h>
#include <linux/virtio_ring.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/uio.h>
#include <time.h>
#include <unistd.h>

#if __BYTE_ORDER__ != __ORDER_LITTLE_ENDIAN__
#error "virtqueues are little-endian"
#endif

/* As chains.py, request.py, init.py and metrics.py have them; a test compares them. */
#define MAX_INDIRECT 1024
#define MAX_CHAIN_BYTES (UINT64_C(1) << 32)
#define MAX_NAME 1024
#define MAX_DATA (1U << 20)
#define SAMPLED 64

/* The journal's file, and the numbers of records, as wire/journal.py has them; a test compares them. */
#define JOURNAL_HEADER 56
#define JOURNAL_END_AT 6
#define HANDLE_INODE_RECORD 4
#define LOOKUPS_RECORD 6
#define OPEN_FILE_RECORD 7
#define RELEASED_RECORD 8
#define NO_NUMBER UINT64_MAX

/* Where an intent is, as state_dir/in_flight.py has it; a test compares what both write. */
#define INTENT_AT 5
#define INTENT_BYTES_AT 256

/* Slices of a chain's memory: as many as one system call takes (UIO_MAXIOV). */
#define MOST_SLICES 1024
#define OPCODES 64
#define HANDLE_BYTES 128
#define IN_HEADER sizeof(struct fuse_in_header)
#define OUT_HEADER sizeof(struct fuse_out_header)

_Static_assert(IN_HEADER == 40 && OUT_HEADER == 16 && sizeof(struct fuse_attr) == 88 &&
	       sizeof(struct fuse_write_in) == 40 && sizeof(struct vring_desc) == 16, "sizes");

/* Guest memory */

static void copy_once(void *to, const void *from, size_t size)
{
	memcpy(to, from, size);
	/* The compiler must not read the source again in the place of the copy. */
	__asm__ volatile("" ::: "memory");
}

static uint16_t load_index(const uint16_t *at)
{
	return __atomic_load_n(at, __ATOMIC_ACQUIRE);
}

static void store_index(uint16_t *at, uint16_t value)
{
	__atomic_store_n(at, value, __ATOMIC_RELEASE);
}

/* Ring */

struct region {
	uint64_t start, size;
	uint8_t *base;
};

/* What `buffers` are of stays mapped until they are released: the ring's parts, the regions. */
typedef struct {
	PyObject_HEAD
	uint16_t size, next_available, seen_available, next_used;
	/* The used index at the last decision about an interrupt; -1 before the first one. */
	int32_t notified;
	bool event_idx, indirect;
	uint8_t *descriptors, *used;
	uint16_t *available;
	Py_ssize_t buffer_count, region_count;
	Py_buffer *buffers;
	struct region *regions, *last_region;
	/* ChainReader.chain, and VirtqueueError. */
	PyObject *chain, *error;
} Ring;

static PyTypeObject *ring_type;

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

static uint16_t next_head(Ring *ring)
{
	uint16_t head, slot = ring->next_available & (uint16_t)(ring->size - 1);
	copy_once(&head, ring->available + 2 + slot, sizeof(head));
	return head;
}

static void put_used(Ring *ring, uint32_t head, uint32_t written)
{
	struct vring_used_elem element = {head, written};
	size_t slot = ring->next_used & (ring->size - 1U);
	memcpy(ring->used + 4 + sizeof(element) * slot, &element, sizeof(element));
	store_index(used_field(ring, 1), ++ring->next_used);
}

/* Return whether there is a chain to pop; the index is read when all that it showed is popped. */
static int is_available(Ring *ring)
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

/* Chains of the common form */

/* The memory of a chain, in slices: the readable ones, and after them the writable ones. */
struct chain {
	struct iovec slices[MOST_SLICES], *writable;
	uint64_t readable_size, writable_size;
};

/* Return guest memory that one region holds; NULL if none does. */
static uint8_t *find_memory(Ring *ring, uint64_t addr, uint64_t size)
{
	struct region *region = ring->last_region, *end = ring->regions + ring->region_count;
	for (Py_ssize_t i = -1; i < ring->region_count; region = &ring->regions[++i]) {
		if (region < end && addr >= region->start && addr - region->start < region->size &&
		    size <= region->size - (addr - region->start)) {
			ring->last_region = region;
			return region->base + (addr - region->start);
		}
	}
	return NULL;
}

/*
 * Find the memory of the chain that begins with a descriptor. False: the chain is wrong or unusual;
 * chains.py knows which.
 */
static bool find_chain(Ring *ring, uint16_t head, struct chain *chain)
{
	const uint16_t known = VRING_DESC_F_NEXT | VRING_DESC_F_WRITE;
	uint32_t count = ring->size, left = ring->size, index = head;
	int used = 0, first = 0;
	uint8_t *table = ring->descriptors;
	bool indirect = false;
	struct vring_desc descriptor;
	uint64_t total = 0;
	chain->writable = NULL;
	do {
		if (index >= count || !left--)
			return false;
		copy_once(&descriptor, table + sizeof(descriptor) * index, sizeof(descriptor));
		uint8_t *memory = find_memory(ring, descriptor.addr, descriptor.len);
		if (!memory || !descriptor.len)
			return false;
		if (descriptor.flags == VRING_DESC_F_INDIRECT) {
			if (indirect || total || !ring->indirect || descriptor.len % 16 ||
			    descriptor.len > 16 * MAX_INDIRECT)
				return false;
			indirect = true;
			table = memory;
			count = left = descriptor.len / 16;
			descriptor.flags = VRING_DESC_F_NEXT;
			index = 0;
			continue;
		}
		if (descriptor.flags & ~known)
			return false;
		if (descriptor.flags & VRING_DESC_F_WRITE && !chain->writable) {
			first = used;
			chain->writable = chain->slices + used;
			chain->readable_size = total;
		}
		if (chain->writable && !(descriptor.flags & VRING_DESC_F_WRITE))
			return false;
		total += descriptor.len;
		struct iovec *last = chain->slices + (used ? used - 1 : 0);
		if (used > first && (uint8_t *)last->iov_base + last->iov_len == memory)
			last->iov_len += descriptor.len;
		else if (used < MOST_SLICES)
			chain->slices[used++] = (struct iovec){memory, descriptor.len};
		else
			return false;
		index = descriptor.next;
	} while (descriptor.flags & VRING_DESC_F_NEXT);
	/* Each request that is plain has a reply. */
	if (!chain->writable || total >= MAX_CHAIN_BYTES)
		return false;
	chain->writable_size = total - chain->readable_size;
	return true;
}

/* Return how many slices are `size` > 0 bytes of others from `offset` on, which are there. */
static int cut(const struct iovec *slices, uint64_t offset, uint64_t size, struct iovec *part)
{
	int count = 0;
	while (offset >= slices->iov_len)
		offset -= (slices++)->iov_len;
	while (size) {
		uint64_t step = slices->iov_len - offset;
		if (step > size)
			step = size;
		part[count++] = (struct iovec){(uint8_t *)slices->iov_base + offset, (size_t)step};
		size -= step;
		offset = 0;
		slices++;
	}
	return count;
}

/* Copy `size` > 0 bytes to or from slices from `offset` on, which are there. */
static void copy(const struct iovec *slices, uint64_t offset, void *data, size_t size, bool to)
{
	struct iovec part[MOST_SLICES];
	int count = cut(slices, offset, size, part);
	for (int i = 0; i < count; i++) {
		void *memory = part[i].iov_base;
		copy_once(to ? memory : data, to ? data : memory, part[i].iov_len);
		data = (uint8_t *)data + part[i].iov_len;
	}
}

/* Plain requests */

/* Attributes of the interpreter's objects. */
enum {
	APPEND_ONLY, BY_HANDLE, ERRORS, FD, FLAGS, HOST_INODE, KEY, KIND, LOOKUPS, MOST, NAMED, NODEID, READING,
	REMOTE, REQUESTS, USED, NAMES,
};
static const char *const names[NAMES] = {
	"append_only", "by_handle", "errors", "fd", "flags", "host_inode", "key", "kind", "lookups", "_most",
	"named", "nodeid", "reading", "remote", "requests", "used",
};
static PyObject *name_of[NAMES];

/* What the interpreter's code has, as passthrough/plain_requests.py names it. */
enum {
	HANDLERS, INODES, BY_HOST_INODE, BY_KEY, FILES, COUNT_OF, BUDGET, TOUCH, ADD, RELEASE,
	COUNT_DURATION, IMMEDIATE, IF_IN_MEMORY, LOST, REFERENCES,
};
static const char *const references[REFERENCES] = {
	"handlers", "inodes", "by_host_inode", "by_key", "files", "count_of", "budget", "touch",
	"add", "release", "count_duration", "immediate", "if_in_memory", "lost",
};

/* What StateChanges has. */
enum { NEW_INODES, CHANGED_INODES, CHANGED_FILES, FLOCKS, OWNERS, RENAMES, CHANGES };
static const char *const change_names[CHANGES] = {
	"new", "inodes", "files", "flocks", "owners", "renames",
};

typedef struct {
	PyObject_HEAD
	/* The opcodes that are served, and those that can be, one bit each. */
	unsigned long long opcodes, known;
	PyObject *references[REFERENCES];
	/* What precedes the attributes in replies. */
	uint8_t attr_start[sizeof(struct fuse_attr_out) - sizeof(struct fuse_attr)];
	uint8_t entry_times[offsetof(struct fuse_entry_out, attr) - 16];
	char proc[32];
	int passed_flags, readonly, announce_submounts;
	uint32_t open_flags;
	/* The changes that a journal is to have, NULL if none is kept. */
	PyObject *changes[CHANGES];
	/* Its file, as far as it may be written; without one, nothing may be written now. */
	Py_buffer journal;
	/* The table of chains in flight, if a journal is kept. */
	Py_buffer in_flight;
} PlainRequests;

/* A request of the common form, and its reply. */
struct request {
	struct fuse_in_header header;
	union {
		struct fuse_flush_in flush;
		struct fuse_getattr_in getattr;
		struct fuse_open_in open;
		struct fuse_read_in read;
		struct fuse_release_in release;
		struct fuse_write_in write;
		char name[MAX_NAME + 1];
	} in;
	uint64_t args_size, room;
	int error;
	struct chain chain;
};

/* An Inode that is open and local, with its HostInode and O_PATH descriptor. */
struct inode {
	PyObject *object, *host;
	long long fd;
};

/* An OpenFile that is local. */
struct file {
	long long fd, flags;
	bool immediate, if_in_memory;
};

/* Instead of the bytes written: the interpreter's code serves the request. */
#define LEAVE (-1)

/* The journal (wire/journal.py) */

/* A transaction: the bytes of its records and their checksum, then the number of the request. */
#define TRANSACTION_HEADER 16
/* A record: its number and the bytes of its values, which follow. */
#define RECORD_HEADER 8
#define MOST_VALUES 6
/* The longest transaction of one record that has only numbers. */
#define MOST_BYTES (TRANSACTION_HEADER + RECORD_HEADER + 8 * MOST_VALUES)

/* A transaction that is being added to the journal. */
struct transaction {
	uint8_t *start, *at, *limit;
	bool too_long;
};

static uint32_t crc_of_byte[256];

static void make_crc_table(void)
{
	for (uint32_t byte = 0; byte < 256; byte++) {
		uint32_t crc = byte;
		for (int bit = 0; bit < 8; bit++)
			crc = crc >> 1 ^ (crc & 1 ? UINT32_C(0xedb88320) : 0);
		crc_of_byte[byte] = crc;
	}
}

/* zlib.crc32() of the records, begun with the number of the request. */
static uint32_t checksum(uint64_t unique, const uint8_t *records, size_t size)
{
	uint32_t crc = ~(uint32_t)unique;
	while (size--)
		crc = crc >> 8 ^ crc_of_byte[(crc ^ *records++) & 0xff];
	return ~crc;
}

static uint64_t *journal_end(PlainRequests *self)
{
	return (uint64_t *)self->journal.buf + JOURNAL_END_AT;
}

/* Return how many bytes a transaction may have now. */
static uint64_t journal_room(PlainRequests *self)
{
	uint64_t size = (uint64_t)self->journal.len;
	if (!self->journal.buf || size < JOURNAL_HEADER ||
	    *journal_end(self) > size - JOURNAL_HEADER)
		return 0;
	return size - JOURNAL_HEADER - *journal_end(self);
}

/* Whether a transaction may be added to the journal, if one is kept. */
static bool can_record(PlainRequests *self)
{
	return !self->changes[0] || journal_room(self) >= MOST_BYTES;
}

/* Begin a transaction. There is room for its header. */
static struct transaction begin_transaction(PlainRequests *self)
{
	uint8_t *start = (uint8_t *)self->journal.buf + JOURNAL_HEADER + *journal_end(self);
	return (struct transaction){
		.start = start,
		.at = start + TRANSACTION_HEADER,
		.limit = (uint8_t *)self->journal.buf + self->journal.len,
	};
}

/* Add a record to a transaction: numbers, and then bytes. */
static void add_record(struct transaction *transaction, uint32_t number, const uint64_t *values,
		       size_t count, const void *data, size_t size)
{
	size_t bytes = count * sizeof(*values);
	uint32_t head[] = {number, (uint32_t)(bytes + size)};
	if ((size_t)(transaction->limit - transaction->at) < sizeof(head) + bytes + size) {
		transaction->too_long = true;
		return;
	}
	memcpy(transaction->at, head, sizeof(head));
	memcpy(transaction->at + sizeof(head), values, bytes);
	if (size)
		memcpy(transaction->at + sizeof(head) + bytes, data, size);
	transaction->at += sizeof(head) + bytes + size;
}

/* End a transaction, as JournalFiles.append() does: it is in the journal then. */
static void end_transaction(PlainRequests *self, struct transaction *transaction, uint64_t unique)
{
	uint8_t *records = transaction->start + TRANSACTION_HEADER;
	size_t size = (size_t)(transaction->at - records);
	uint32_t head[] = {(uint32_t)size, checksum(unique, records, size)};
	memcpy(transaction->start, head, sizeof(head));
	memcpy(transaction->start + sizeof(head), &unique, sizeof(unique));
	/* Who reads it after the process has ended reads as far as this. */
	__atomic_store_n(journal_end(self), *journal_end(self) + TRANSACTION_HEADER + size,
			 __ATOMIC_RELEASE);
}

/* Add a transaction with one record; can_record() was true. */
static void record(PlainRequests *self, uint64_t unique, uint32_t number, const uint64_t *values,
		   size_t count)
{
	struct transaction transaction = begin_transaction(self);
	add_record(&transaction, number, values, count, NULL, 0);
	end_transaction(self, &transaction, unique);
}

/* What name_to_handle_at(2) returns, with the mount's id in front: HandleReader. */
struct place {
	int mount;
	unsigned int bytes;
	int type;
	uint8_t handle[HANDLE_BYTES];
};

/* Read the file handle of a directory entry; return 0 or an errno. */
static int read_place(int directory, const char *name, struct place *place)
{
	int failed, error;
	place->bytes = HANDLE_BYTES;
	Py_BEGIN_ALLOW_THREADS
	failed = name_to_handle_at(directory, name, (void *)&place->bytes, &place->mount, 0);
	error = errno;
	Py_END_ALLOW_THREADS
	if (failed)
		return error;
	return place->bytes > HANDLE_BYTES ? EOVERFLOW : 0;
}

struct intent {
	uint64_t time_ns, until_ns;
	uint32_t first, second;
	uint64_t number;
	uint8_t identity[2 * sizeof(int) + HANDLE_BYTES];
};

/* Get an attribute that is a number or a bool; false: there is none, an exception is set. */
static bool get(PyObject *object, int name, long long *value)
{
	PyObject *found = PyObject_GetAttr(object, name_of[name]);
	if (!found)
		return false;
	*value = PyLong_AsLongLong(found);
	Py_DECREF(found);
	return *value != -1 || !PyErr_Occurred();
}

static bool set(PyObject *object, int name, long long value)
{
	PyObject *number = PyLong_FromLongLong(value);
	bool done = number && !PyObject_SetAttr(object, name_of[name], number);
	Py_XDECREF(number);
	return done;
}

/* Return the value of a number in a table, borrowed; NULL if there is none. */
static PyObject *find(PyObject *table, uint64_t number)
{
	PyObject *key = PyLong_FromUnsignedLongLong(number);
	if (!key)
		return NULL;
	PyObject *found = PyDict_GetItemWithError(table, key);
	Py_DECREF(key);
	return found;
}

static void put_inode(struct inode *inode)
{
	Py_XDECREF(inode->object);
	Py_XDECREF(inode->host);
}

/* Find an inode, and make it the one that was used last: InodeTable.get(). */
static bool get_inode(PlainRequests *self, uint64_t nodeid, struct inode *inode)
{
	PyObject *touched = NULL;
	long long remote, by_handle;
	inode->host = NULL;
	inode->object = Py_XNewRef(find(self->references[INODES], nodeid));
	if (!inode->object)
		return false;
	inode->host = PyObject_GetAttr(inode->object, name_of[HOST_INODE]);
	if (inode->host && get(inode->host, FD, &inode->fd) && inode->fd >= 0 &&
	    get(inode->host, REMOTE, &remote) && !remote &&
	    get(inode->host, BY_HANDLE, &by_handle)) {
		if (!by_handle)
			return true;
		touched = PyObject_CallFunctionObjArgs(self->references[TOUCH], inode->host, NULL);
		Py_XDECREF(touched);
	}
	if (!touched)
		put_inode(inode);
	return touched;
}

/* Find an open file of an inode: OpenFileTable.get(). */
static bool get_file(PlainRequests *self, uint64_t nodeid, uint64_t fh, struct file *file)
{
	PyObject *object = Py_XNewRef(find(self->references[FILES], fh)), *reading = NULL;
	long long owner, remote;
	if (object && get(object, NODEID, &owner) && (uint64_t)owner == nodeid &&
	    get(object, FD, &file->fd) && get(object, FLAGS, &file->flags) &&
	    get(object, REMOTE, &remote) && !remote)
		reading = PyObject_GetAttr(object, name_of[READING]);
	file->immediate = reading == self->references[IMMEDIATE];
	file->if_in_memory = reading == self->references[IF_IN_MEMORY];
	Py_XDECREF(reading);
	Py_XDECREF(object);
	return reading;
}

/* Write the reply, of which `size` bytes after the header are there; return its bytes. */
static int64_t reply_header(struct request *request, int error, uint64_t size)
{
	struct fuse_out_header header = {
		.len = (uint32_t)(OUT_HEADER + size),
		.error = -error,
		.unique = request->header.unique,
	};
	request->error = error;
	copy(request->chain.writable, 0, &header, OUT_HEADER, true);
	return header.len;
}

static int64_t reply(struct request *request, void *payload, size_t size)
{
	copy(request->chain.writable, OUT_HEADER, payload, size, true);
	return reply_header(request, 0, size);
}

/* As fuse/encode.py does. */
static struct fuse_attr attributes(const struct stat *status)
{
	const struct timespec *atime = &status->st_atim, *mtime = &status->st_mtim;
	const struct timespec *ctime = &status->st_ctim;
	uint64_t links = status->st_nlink;
	return (struct fuse_attr){
		.ino = status->st_ino, .mode = status->st_mode,
		.size = (uint64_t)status->st_size, .blocks = (uint64_t)status->st_blocks,
		.atime = (uint64_t)atime->tv_sec, .atimensec = (uint32_t)atime->tv_nsec,
		.mtime = (uint64_t)mtime->tv_sec, .mtimensec = (uint32_t)mtime->tv_nsec,
		.ctime = (uint64_t)ctime->tv_sec, .ctimensec = (uint32_t)ctime->tv_nsec,
		.nlink = links > UINT32_MAX ? UINT32_MAX : (uint32_t)links,
		.uid = status->st_uid, .gid = status->st_gid,
		.rdev = (uint32_t)status->st_rdev, .blksize = (uint32_t)status->st_blksize,
	};
}

static int64_t getattr(PlainRequests *self, struct request *request)
{
	struct fuse_attr_out out;
	struct inode inode;
	struct stat status;
	struct file file;
	if (request->in.getattr.getattr_flags & FUSE_GETATTR_FH) {
		if (!get_file(self, request->header.nodeid, request->in.getattr.fh, &file) ||
		    fstat((int)file.fd, &status))
			return LEAVE;
	} else {
		if (!get_inode(self, request->header.nodeid, &inode))
			return LEAVE;
		put_inode(&inode);
		/* Without a name it may be stale. */
		if (fstat((int)inode.fd, &status) || !status.st_nlink)
			return LEAVE;
	}
	memcpy(&out, self->attr_start, sizeof(self->attr_start));
	out.attr = attributes(&status);
	return reply(request, &out, sizeof(out));
}

/* Whether a directory that was found is a mount point, as share.py has it, or may be one. */
static bool may_be_mount(const struct inode *parent, int mount, const struct stat *found)
{
	PyObject *key = PyObject_GetAttr(parent->host, name_of[KEY]);
	struct stat status;
	bool same = key && PyBytes_Check(key) && PyBytes_Size(key) >= (Py_ssize_t)sizeof(mount) &&
		    !memcmp(PyBytes_AsString(key), &mount, sizeof(mount));
	Py_XDECREF(key);
	return !same || fstat((int)parent->fd, &status) || status.st_dev != found->st_dev;
}

/* Count a lookup of an inode: InodeTable._count(). Return the values of LookupsState. */
static bool count_lookup(PyObject *inode, const struct stat *status, uint64_t counted[3])
{
	long long nodeid, named, lookups;
	if (!get(inode, NODEID, &nodeid) || !get(inode, NAMED, &named) ||
	    !get(inode, LOOKUPS, &lookups))
		return false;
	counted[0] = (uint64_t)nodeid;
	counted[1] = (uint64_t)lookups + 1;
	counted[2] = named || status->st_nlink;
	return set(inode, LOOKUPS, lookups + 1) &&
	       (named || !status->st_nlink || !PyObject_SetAttr(inode, name_of[NAMED], Py_True));
}

/*
 * Look up an entry of a directory, and count that, if the inode is known by its handle and open.
 * Return 0, ENOENT, or LEAVE; the values of LookupsState.
 */
static int look_up(PlainRequests *self, uint64_t parent_id, const char *name,
		   struct fuse_entry_out *out, uint64_t counted[3])
{
	struct place place;
	PyObject *key = NULL, *host, *inode = NULL;
	long long fd, remote, kind;
	int error, result = LEAVE;
	struct inode parent;
	struct stat status;
	if (!get_inode(self, parent_id, &parent))
		return LEAVE;
	error = read_place((int)parent.fd, name, &place);
	if (error) {
		result = error == ENOENT ? ENOENT : LEAVE;
		goto out;
	}
	key = PyBytes_FromStringAndSize((char *)&place, (Py_ssize_t)(3 * sizeof(int) + place.bytes));
	host = key ? PyDict_GetItemWithError(self->references[BY_KEY], key) : NULL;
	inode = host ? PyDict_GetItemWithError(self->references[BY_HOST_INODE], host) : NULL;
	Py_XINCREF(inode);
	if (!inode || !get(host, FD, &fd) || fd < 0 || !get(host, REMOTE, &remote) || remote ||
	    !get(inode, KIND, &kind) || fstat((int)fd, &status) ||
	    (kind == S_IFDIR && self->announce_submounts &&
	     may_be_mount(&parent, place.mount, &status)) ||
	    !count_lookup(inode, &status, counted))
		goto out;
	out->nodeid = counted[0];
	out->generation = 0;
	memcpy(&out->entry_valid, self->entry_times, sizeof(self->entry_times));
	out->attr = attributes(&status);
	result = 0;
out:
	Py_XDECREF(inode);
	Py_XDECREF(key);
	put_inode(&parent);
	return result;
}

/* Whether it is one name in a directory, of `size` bytes with the NUL. */
static bool is_name(const char *name, size_t size)
{
	return size > 1 && memchr(name, 0, size) == name + size - 1 && !strchr(name, '/') &&
	       strcmp(name, ".") && strcmp(name, "..");
}

static int64_t lookup(PlainRequests *self, struct request *request)
{
	struct fuse_entry_out out;
	uint64_t counted[3];
	if (!is_name(request->in.name, request->args_size))
		return LEAVE;
	int found = look_up(self, request->header.nodeid, request->in.name, &out, counted);
	if (!found && self->changes[0])
		record(self, request->header.unique, LOOKUPS_RECORD, counted, 3);
	if (!found)
		return reply(request, &out, sizeof(out));
	return found == ENOENT ? reply_header(request, ENOENT, 0) : LEAVE;
}

/* Whether a file may be opened without further rules: OpenOperations.open(). */
static bool can_open(PlainRequests *self, const struct fuse_open_in *in, const struct inode *inode)
{
	long long kind, named, nodeid, used, most;
	struct stat status;
	PyObject *budget = self->references[BUDGET];
	if (in->flags > INT_MAX || in->flags & (O_TRUNC | O_APPEND) || in->open_flags ||
	    (self->readonly && (in->flags & O_ACCMODE) != O_RDONLY) ||
	    !get(budget, USED, &used) || !get(budget, MOST, &most) || used >= most ||
	    !get(inode->object, KIND, &kind) || kind != S_IFREG ||
	    !get(inode->object, NAMED, &named) || !get(inode->object, NODEID, &nodeid))
		return false;
	/* Without a name and not open it is stale. */
	return !named || find(self->references[COUNT_OF], (uint64_t)nodeid) ||
	       (!PyErr_Occurred() && !fstat((int)inode->fd, &status) && status.st_nlink);
}

static int64_t open_file(PlainRequests *self, struct request *request)
{
	struct fuse_open_out out = {.open_flags = self->open_flags};
	int fd, flags = (int)request->in.open.flags & self->passed_flags;
	char path[sizeof(self->proc) + 24];
	struct inode inode;
	if (!get_inode(self, request->header.nodeid, &inode))
		return LEAVE;
	bool can = can_open(self, &request->in.open, &inode);
	put_inode(&inode);
	if (!can)
		return LEAVE;
	snprintf(path, sizeof(path), "%s%lld", self->proc, inode.fd);
	Py_BEGIN_ALLOW_THREADS
	fd = open(path, flags | O_NONBLOCK | O_CLOEXEC);
	Py_END_ALLOW_THREADS
	if (fd < 0)
		return LEAVE;
	PyObject *added = PyObject_CallFunction(self->references[ADD], "Kii",
						(unsigned long long)request->header.nodeid, fd,
						flags);
	if (!added) {
		close(fd);
		return LEAVE;
	}
	out.fh = PyLong_AsUnsignedLongLong(added);
	if (self->changes[0]) {
		uint64_t file[] = {out.fh, request->header.nodeid, NO_NUMBER, (uint64_t)flags, 0, 0};
		record(self, request->header.unique, OPEN_FILE_RECORD, file, 6);
		PySet_Discard(self->changes[CHANGED_FILES], added);
	}
	Py_DECREF(added);
	return reply(request, &out, sizeof(out));
}

/* Close a duplicate, which reports what close(2) would, for a process of the guest. */
static int64_t flush(PlainRequests *self, struct request *request)
{
	struct file file;
	int failed;
	if (!get_file(self, request->header.nodeid, request->in.flush.fh, &file))
		return LEAVE;
	Py_BEGIN_ALLOW_THREADS
	failed = fcntl((int)file.fd, F_DUPFD_CLOEXEC, 0);
	failed = failed < 0 ? failed : close(failed);
	Py_END_ALLOW_THREADS
	return failed ? LEAVE : reply_header(request, 0, 0);
}

static int64_t release(PlainRequests *self, struct request *request)
{
	unsigned long long nodeid = request->header.nodeid, fh = request->in.release.fh;
	struct file file;
	if (!get_file(self, nodeid, fh, &file))
		return LEAVE;
	PyObject *result = PyObject_CallFunction(self->references[RELEASE], "KK", nodeid, fh);
	if (!result)
		return LEAVE;
	int error = (int)PyLong_AsLong(result);
	Py_DECREF(result);
	if (self->changes[0]) {
		uint64_t released = fh;
		PyObject *number = PyLong_FromUnsignedLongLong(fh);
		record(self, request->header.unique, RELEASED_RECORD, &released, 1);
		if (number)
			PySet_Discard(self->changes[CHANGED_FILES], number);
		Py_XDECREF(number);
	}
	return reply_header(request, error, 0);
}

static int64_t read_file(PlainRequests *self, struct request *request)
{
	const struct fuse_read_in *in = &request->in.read;
	struct iovec slices[MOST_SLICES];
	struct stat status;
	struct file file;
	ssize_t done;
	if (in->offset > INT64_MAX || !in->size || in->size > MAX_DATA ||
	    in->size > request->room ||
	    !get_file(self, request->header.nodeid, in->fh, &file) ||
	    (!file.immediate && !file.if_in_memory))
		return LEAVE;
	int count = cut(request->chain.writable, OUT_HEADER, in->size, slices);
	Py_BEGIN_ALLOW_THREADS
	done = preadv2((int)file.fd, slices, count, (off_t)in->offset,
		       file.if_in_memory ? RWF_NOWAIT : 0);
	Py_END_ALLOW_THREADS
	if (done < 0)
		return LEAVE;
	/* The rest may be on the disk. */
	if (file.if_in_memory && (uint64_t)done < in->size &&
	    (fstat((int)file.fd, &status) ||
	     in->offset + (uint64_t)done < (uint64_t)status.st_size))
		return LEAVE;
	return reply_header(request, 0, (uint64_t)done);
}

static int64_t write_file(PlainRequests *self, struct request *request)
{
	const struct fuse_write_in *in = &request->in.write;
	struct fuse_write_out out = {0};
	struct iovec slices[MOST_SLICES];
	struct file file;
	ssize_t done;
	if (in->offset > INT64_MAX || !in->size || in->size > MAX_DATA ||
	    in->size > request->args_size - sizeof(*in) ||
	    in->write_flags & ~(uint32_t)FUSE_WRITE_LOCKOWNER ||
	    !get_file(self, request->header.nodeid, in->fh, &file) ||
	    file.flags & (O_APPEND | O_DIRECT | O_DSYNC))
		return LEAVE;
	int count = cut(request->chain.slices, IN_HEADER + sizeof(*in), in->size, slices);
	Py_BEGIN_ALLOW_THREADS
	done = pwritev2((int)file.fd, slices, count, (off_t)in->offset, 0);
	Py_END_ALLOW_THREADS
	if (done < 0)
		return LEAVE;
	out.size = (uint32_t)done;
	return reply(request, &out, sizeof(out));
}

/*
 * By opcode: what serves it, the sizes of arguments and reply that it needs, and whether it changes
 * what a journal has.
 */
static const struct {
	int64_t (*serve)(PlainRequests *self, struct request *request);
	size_t args_size, reply_size;
	bool records;
} operations[OPCODES] = {
	[FUSE_LOOKUP] = {lookup, 2, sizeof(struct fuse_entry_out), true},
	[FUSE_GETATTR] = {getattr, sizeof(struct fuse_getattr_in), sizeof(struct fuse_attr_out)},
	[FUSE_OPEN] = {open_file, sizeof(struct fuse_open_in), sizeof(struct fuse_open_out), true},
	[FUSE_READ] = {read_file, sizeof(struct fuse_read_in), 0},
	[FUSE_WRITE] = {write_file, sizeof(struct fuse_write_in), sizeof(struct fuse_write_out)},
	[FUSE_FLUSH] = {flush, sizeof(struct fuse_flush_in), 0},
	[FUSE_RELEASE] = {release, sizeof(struct fuse_release_in), 0, true},
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
	copy(request->chain.slices, 0, header, IN_HEADER, false);
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
	copy(request->chain.slices, IN_HEADER, &request->in,
	     opcode == FUSE_LOOKUP ? request->args_size : operations[opcode].args_size, false);
	PyObject *handler = find(self->references[HANDLERS], opcode);
	long long requests, errors;
	if (!handler || !get(handler, REQUESTS, &requests) || !get(handler, ERRORS, &errors))
		return LEAVE;
	bool timed = !((requests + 1) % SAMPLED);
	long long began = timed ? monotonic_ns() : 0;
	int64_t written = operations[opcode].serve(self, request);
	if (written == LEAVE)
		return LEAVE;
	set(handler, REQUESTS, requests + 1);
	if (request->error)
		set(handler, ERRORS, errors + 1);
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

/* Add a number to a set, if there is one. */
static bool note_change(PyObject *changed, uint64_t number)
{
	PyObject *key = changed ? PyLong_FromUnsignedLongLong(number) : NULL;
	bool noted = !changed || (key && !PySet_Add(changed, key));
	Py_XDECREF(key);
	return noted;
}

/*
 * Return the fuse_entry_out of a known entry of a directory, counted; None: it may be another. That
 * the count has changed is noted; the request that this is for is recorded by the interpreter's code.
 */
static PyObject *plain_known_entry(PyObject *self, PyObject *args)
{
	PlainRequests *plain = (PlainRequests *)self;
	unsigned long long parent;
	struct fuse_entry_out out;
	uint64_t counted[3];
	const char *name;
	Py_ssize_t size;
	if (!PyArg_ParseTuple(args, "Ky#", &parent, &name, &size))
		return NULL;
	if (plain->opcodes >> FUSE_LOOKUP & 1 && size <= MAX_NAME &&
	    is_name(name, (size_t)size + 1) && !look_up(plain, parent, name, &out, counted))
		return note_change(plain->changes[CHANGED_INODES], counted[0]) ?
			       PyBytes_FromStringAndSize((char *)&out, sizeof(out)) :
			       NULL;
	PyErr_Clear();
	Py_RETURN_NONE;
}

/* Keep a journal: of a StateChanges, with the table of chains in flight. */
static PyObject *plain_keep_journal(PyObject *self, PyObject *args)
{
	PlainRequests *plain = (PlainRequests *)self;
	PyObject *changes, *table;
	if (!PyArg_ParseTuple(args, "OO", &changes, &table))
		return NULL;
	if (plain->changes[0]) {
		PyErr_SetString(PyExc_ValueError, "a journal is kept");
		return NULL;
	}
	if (PyObject_GetBuffer(table, &plain->in_flight, PyBUF_WRITABLE)) {
		plain->in_flight.buf = NULL;
		return NULL;
	}
	if (plain->in_flight.len < (Py_ssize_t)(INTENT_BYTES_AT + sizeof(struct intent))) {
		PyErr_SetString(PyExc_ValueError, "not a table of chains in flight");
		return NULL;
	}
	for (int i = CHANGES - 1; i >= 0; i--) {
		plain->changes[i] = PyObject_GetAttrString(changes, change_names[i]);
		if (!plain->changes[i])
			return NULL;
	}
	Py_RETURN_NONE;
}

/* Add to the journal in a view of its file from now on; None: add nothing. */
static PyObject *plain_use_journal(PyObject *self, PyObject *view)
{
	PlainRequests *plain = (PlainRequests *)self;
	if (plain->journal.buf)
		PyBuffer_Release(&plain->journal);
	plain->journal.buf = NULL;
	if (view != Py_None && PyObject_GetBuffer(view, &plain->journal, PyBUF_WRITABLE)) {
		plain->journal.buf = NULL;
		return NULL;
	}
	Py_RETURN_NONE;
}

/*
 * Record what a directory entry is, as the intent of a request, as InFlight.intend() does. Its name
 * is at a position of the request's arguments. False: nothing is recorded, it is no name, or its
 * file handle cannot be read.
 */
static PyObject *plain_intend_entry(PyObject *self, PyObject *args)
{
	PlainRequests *plain = (PlainRequests *)self;
	struct intent intent = {0};
	unsigned long long unique;
	Py_ssize_t size, at;
	struct timespec now;
	struct place place;
	const char *name;
	int directory;
	if (!PyArg_ParseTuple(args, "Kiy#n", &unique, &directory, &name, &size, &at))
		return NULL;
	const char *end = at >= 0 && at < size ? memchr(name + at, 0, (size_t)(size - at)) : NULL;
	name += at;
	if (!end || end - name > MAX_NAME || !is_name(name, (size_t)(end - name) + 1))
		Py_RETURN_FALSE;
	int error = plain->in_flight.buf ? read_place(directory, name, &place) : ENOSYS;
	if (error && error != ENOENT)
		Py_RETURN_FALSE;
	if (!error) {
		intent.first = 2 * sizeof(int) + place.bytes;
		memcpy(intent.identity, &place.bytes, intent.first);
	}
	/* The clock that files get their times of. */
	clock_gettime(CLOCK_REALTIME_COARSE, &now);
	intent.time_ns = (uint64_t)now.tv_sec * 1000000000U + (uint64_t)now.tv_nsec;
	uint64_t *valid = (uint64_t *)plain->in_flight.buf + INTENT_AT;
	__atomic_store_n(valid, 0, __ATOMIC_SEQ_CST);
	memcpy((uint8_t *)plain->in_flight.buf + INTENT_BYTES_AT, &intent,
	       offsetof(struct intent, identity) + intent.first);
	__atomic_store_n(valid, unique, __ATOMIC_RELEASE);
	Py_RETURN_TRUE;
}

static bool add_lookups(PlainRequests *self, struct transaction *transaction, PyObject *nodeid)
{
	PyObject *inode = PyDict_GetItemWithError(self->references[INODES], nodeid);
	long long lookups = 0, named = 0;
	if (inode && (!get(inode, LOOKUPS, &lookups) || !get(inode, NAMED, &named)))
		return false;
	uint64_t values[] = {PyLong_AsUnsignedLongLong(nodeid), (uint64_t)lookups, (uint64_t)named};
	add_record(transaction, LOOKUPS_RECORD, values, 3, NULL, 0);
	return true;
}

/* Add a new inode, if it is found by its handle, and its mount is among those of the journal. */
static bool add_inode(PlainRequests *self, struct transaction *transaction, PyObject *nodeid,
		      PyObject *mounts)
{
	PyObject *inode = PyDict_GetItemWithError(self->references[INODES], nodeid);
	long long kind, lookups, named, by_handle;
	bool added = false;
	int mount;
	if (!inode)
		return !PyErr_Occurred() && add_lookups(self, transaction, nodeid);
	PyObject *host = PyObject_GetAttr(inode, name_of[HOST_INODE]);
	PyObject *key = host ? PyObject_GetAttr(host, name_of[KEY]) : NULL, *ident = NULL;
	if (key && PyBytes_Check(key) && PyBytes_Size(key) >= (Py_ssize_t)sizeof(mount) &&
	    get(host, BY_HANDLE, &by_handle) && by_handle && get(inode, KIND, &kind) &&
	    get(inode, LOOKUPS, &lookups) && get(inode, NAMED, &named)) {
		size_t size = (size_t)PyBytes_Size(key);
		uint64_t values[] = {PyLong_AsUnsignedLongLong(nodeid), (uint64_t)kind,
				     (uint64_t)lookups, (uint64_t)named, size};
		memcpy(&mount, PyBytes_AsString(key), sizeof(mount));
		ident = PyLong_FromLong(mount);
		added = ident && PySet_Contains(mounts, ident) == 1;
		add_record(transaction, HANDLE_INODE_RECORD, values, 5, PyBytes_AsString(key), size);
	}
	Py_XDECREF(ident);
	Py_XDECREF(key);
	Py_XDECREF(host);
	return added;
}

/* Add a file that was opened or closed, unless it may be one that is lost. */
static bool add_file(PlainRequests *self, struct transaction *transaction, PyObject *fh)
{
	PyObject *file = PyDict_GetItemWithError(self->references[FILES], fh);
	long long nodeid, flags, append_only, remote;
	uint64_t number = PyLong_AsUnsignedLongLong(fh);
	if (!file) {
		add_record(transaction, RELEASED_RECORD, &number, 1, NULL, 0);
		return !PyErr_Occurred() && !PyDict_Size(self->references[LOST]);
	}
	if (!get(file, NODEID, &nodeid) || !get(file, FLAGS, &flags) ||
	    !get(file, APPEND_ONLY, &append_only) || !get(file, REMOTE, &remote))
		return false;
	uint64_t values[] = {number,	       (uint64_t)nodeid,      NO_NUMBER,
			     (uint64_t)flags, (uint64_t)append_only, (uint64_t)remote};
	add_record(transaction, OPEN_FILE_RECORD, values, 6, NULL, 0);
	return true;
}

/* Add what has changed: first new inodes, then lookup counts, then files. */
static bool add_changes(PlainRequests *self, struct transaction *transaction, PyObject *mounts)
{
	bool added = true;
	for (int kind = NEW_INODES; added && kind <= CHANGED_FILES; kind++) {
		PyObject *iterator = NULL, *number;
		if (!PySet_Size(self->changes[kind]))
			continue;
		iterator = PyObject_GetIter(self->changes[kind]);
		while (added && iterator && (number = PyIter_Next(iterator))) {
			if (kind == NEW_INODES)
				added = add_inode(self, transaction, number, mounts);
			else if (kind == CHANGED_FILES)
				added = add_file(self, transaction, number);
			else if (!PySet_Contains(self->changes[NEW_INODES], number))
				added = add_lookups(self, transaction, number);
			Py_DECREF(number);
		}
		Py_XDECREF(iterator);
		added = added && iterator && !PyErr_Occurred();
	}
	return added && !transaction->too_long;
}

/*
 * Add what a request has changed to the journal, as Journal.commit() does. False: nothing is added,
 * it is more than new inodes by handle, lookup counts and files, or there is no room.
 */
static PyObject *plain_commit(PyObject *self, PyObject *args)
{
	PlainRequests *plain = (PlainRequests *)self;
	unsigned long long unique;
	PyObject *mounts;
	if (!PyArg_ParseTuple(args, "KO!", &unique, &PySet_Type, &mounts))
		return NULL;
	if (!plain->changes[0] || journal_room(plain) < TRANSACTION_HEADER ||
	    PyDict_Size(plain->changes[FLOCKS]) || PySet_Size(plain->changes[OWNERS]) ||
	    PyList_Size(plain->changes[RENAMES]))
		Py_RETURN_FALSE;
	if (!PySet_Size(plain->changes[NEW_INODES]) && !PySet_Size(plain->changes[CHANGED_INODES]) &&
	    !PySet_Size(plain->changes[CHANGED_FILES]))
		Py_RETURN_TRUE;
	struct transaction transaction = begin_transaction(plain);
	if (!add_changes(plain, &transaction, mounts)) {
		PyErr_Clear();
		Py_RETURN_FALSE;
	}
	end_transaction(plain, &transaction, unique);
	for (int kind = NEW_INODES; kind <= CHANGED_FILES; kind++)
		PySet_Clear(plain->changes[kind]);
	Py_RETURN_TRUE;
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

/* The module */

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
static PyType_Spec ring_spec = {
	.name = "farwatchd._native.Ring", .basicsize = sizeof(Ring), .slots = ring_slots,
	.flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_BASETYPE,
};

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
static PyType_Spec plain_spec = {
	.name = "farwatchd._native.PlainRequests", .basicsize = sizeof(PlainRequests),
	.flags = Py_TPFLAGS_DEFAULT, .slots = plain_slots,
};

static struct PyModuleDef module = {PyModuleDef_HEAD_INIT, .m_name = "_native", .m_size = -1};

PyMODINIT_FUNC PyInit__native(void)
{
	PyObject *result = PyModule_Create(&module), *plain = PyType_FromSpec(&plain_spec);
	ring_type = (PyTypeObject *)PyType_FromSpec(&ring_spec);
	make_crc_table();
	for (int i = 0; i < NAMES; i++)
		name_of[i] = PyUnicode_InternFromString(names[i]);
	if (PyErr_Occurred() || PyModule_AddType(result, ring_type) ||
	    PyModule_AddType(result, (PyTypeObject *)plain))
		return NULL;
	return result;
}
