// SPDX-License-Identifier: Apache-2.0
/*
 * The optional native part (docs/decisions/0026-native-part.md): the ring, and plain requests.
 *
 * ring.c            the ring
 * chain.c           the memory of a chain
 * objects.c         attributes and tables of the interpreter's
 * entries.c         entries of a directory
 * journal.c         the journal of --state-dir
 * operations.c      what each opcode does
 * plain_requests.c  serves the plain requests of a ring by all that
 * module.c          the module of these
 *
 * A function is described where it is defined.
 *
 * The tables are the interpreter's; nothing of them is kept here. All functions are for the event
 * loop's thread, with the interpreter's lock. System calls that may wait release it.
 *
 * Guest memory changes at any time. copy_once() and load_index() are the only ways to look into it:
 * what they return is checked, then used, and not read again.
 */
#ifndef FARWATCHD_NATIVE_H
#define FARWATCHD_NATIVE_H

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

/* Other libraries of a process may have functions of the same names. */
#pragma GCC visibility push(hidden)

/* As chains.py, request.py, init.py and metrics.py have them; a test compares them. */
#define MAX_INDIRECT 1024
#define MAX_CHAIN_BYTES (UINT64_C(1) << 32)
#define MAX_NAME 1024
#define MAX_DATA (1U << 20)
#define SAMPLED 64

#define OPCODES 64
#define IN_HEADER sizeof(struct fuse_in_header)
#define OUT_HEADER sizeof(struct fuse_out_header)

_Static_assert(IN_HEADER == 40 && OUT_HEADER == 16 && sizeof(struct fuse_attr) == 88 &&
	       sizeof(struct fuse_write_in) == 40 && sizeof(struct vring_desc) == 16, "sizes");

/* Guest memory */

static inline void copy_once(void *to, const void *from, size_t size)
{
	memcpy(to, from, size);
	/* The compiler must not read the source again in the place of the copy. */
	__asm__ volatile("" ::: "memory");
}

static inline uint16_t load_index(const uint16_t *at)
{
	return __atomic_load_n(at, __ATOMIC_ACQUIRE);
}

static inline void store_index(uint16_t *at, uint16_t value)
{
	__atomic_store_n(at, value, __ATOMIC_RELEASE);
}

/* ring.c */

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

extern PyType_Spec ring_spec;
extern PyTypeObject *ring_type;

int is_available(Ring *ring);
uint16_t next_head(Ring *ring);
void put_used(Ring *ring, uint32_t head, uint32_t written);

/* chain.c */

/* Slices of a chain's memory: as many as one system call takes (UIO_MAXIOV). */
#define MOST_SLICES 1024

/* The memory of a chain, in slices: the readable ones, and after them the writable ones. */
struct chain {
	struct iovec slices[MOST_SLICES], *writable;
	uint64_t readable_size, writable_size;
};

bool find_chain(Ring *ring, uint16_t head, struct chain *chain);
int cut_slices(const struct iovec *slices, uint64_t offset, uint64_t size, struct iovec *part);
void copy_slices(const struct iovec *slices, uint64_t offset, void *data, size_t size, bool to);

/* plain_requests.c */

/* What the interpreter's code has, as passthrough/plain_requests.py names it. */
enum {
	HANDLERS, INODES, BY_HOST_INODE, BY_KEY, FILES, COUNT_OF, BUDGET, TOUCH, ADD, RELEASE,
	COUNT_DURATION, IMMEDIATE, IF_IN_MEMORY, LOST, REFERENCES,
};
/* What StateChanges has. */
enum { NEW_INODES, CHANGED_INODES, CHANGED_FILES, FLOCKS, OWNERS, RENAMES, CHANGES };

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

extern PyType_Spec plain_spec;

/* objects.c */

/* Attributes of the interpreter's objects. */
enum {
	APPEND_ONLY, BY_HANDLE, ERRORS, FD, FLAGS, HOST_INODE, KEY, KIND, LOOKUPS, MOST, NAMED,
	NODEID, READING, REMOTE, REQUESTS, USED, NAMES,
};
extern PyObject *name_of[NAMES];

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

bool intern_names(void);
bool get_number(PyObject *object, int name, long long *value);
bool set_number(PyObject *object, int name, long long value);
PyObject *find_number(PyObject *table, uint64_t number);
bool get_inode(PlainRequests *self, uint64_t nodeid, struct inode *inode);
void put_inode(struct inode *inode);
bool get_file(PlainRequests *self, uint64_t nodeid, uint64_t fh, struct file *file);

/* entries.c */

#define HANDLE_BYTES 128

/* What name_to_handle_at(2) returns, with the mount's id in front: HandleReader. */
struct place {
	int mount;
	unsigned int bytes;
	int type;
	uint8_t handle[HANDLE_BYTES];
};

int read_place(int directory, const char *name, struct place *place);
bool is_name(const char *name, size_t size);
struct fuse_attr attributes(const struct stat *status);
int look_up(PlainRequests *self, uint64_t parent_id, const char *name, struct fuse_entry_out *out,
	    uint64_t counted[3]);
PyObject *plain_known_entry(PyObject *self, PyObject *args);

/* journal.c */

/* The numbers of records, as wire/journal.py has them; a test compares them. */
#define HANDLE_INODE_RECORD 4
#define LOOKUPS_RECORD 6
#define OPEN_FILE_RECORD 7
#define RELEASED_RECORD 8
#define NO_NUMBER UINT64_MAX

void make_crc_table(void);
bool can_record(PlainRequests *self);
void record_change(PlainRequests *self, uint64_t unique, uint32_t number, const uint64_t *values,
		   size_t count);
PyObject *plain_keep_journal(PyObject *self, PyObject *args);
PyObject *plain_use_journal(PyObject *self, PyObject *view);
PyObject *plain_intend_entry(PyObject *self, PyObject *args);
PyObject *plain_commit(PyObject *self, PyObject *args);

/* operations.c */

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

/* Instead of the bytes written: the interpreter's code serves the request. */
#define LEAVE (-1)

/*
 * By opcode: what serves it, the sizes of arguments and reply that it needs, and whether it changes
 * what a journal has.
 */
struct operation {
	int64_t (*serve)(PlainRequests *self, struct request *request);
	size_t args_size, reply_size;
	bool records;
};
extern const struct operation operations[OPCODES];

#pragma GCC visibility pop
#endif
