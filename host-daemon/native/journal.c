// SPDX-License-Identifier: Apache-2.0
/*
 * The journal and the table of chains in flight (--state-dir): records of plain requests, and the
 * commonest ones of others. wire/journal.py has the format.
 */
#include "native.h"

/* The journal's file, as wire/journal.py has it; a test compares them. */
#define JOURNAL_HEADER 56
#define JOURNAL_END_AT 6

/* Where an intent is, as state_dir/in_flight.py has it; a test compares what both write. */
#define INTENT_AT 5
#define INTENT_BYTES_AT 256

static const char *const change_names[CHANGES] = {
	[NEW_INODES] = "new", [CHANGED_INODES] = "inodes", [CHANGED_FILES] = "files",
	[FLOCKS] = "flocks", [OWNERS] = "owners", [RENAMES] = "renames",
};

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

void make_crc_table(void)
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
bool can_record(PlainRequests *self)
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
void record_change(PlainRequests *self, uint64_t unique, uint32_t number, const uint64_t *values,
		   size_t count)
{
	struct transaction transaction = begin_transaction(self);
	add_record(&transaction, number, values, count, NULL, 0);
	end_transaction(self, &transaction, unique);
}

struct intent {
	uint64_t time_ns, until_ns;
	uint32_t first, second;
	uint64_t number;
	uint8_t identity[2 * sizeof(int) + HANDLE_BYTES];
};

/* Keep a journal: of a StateChanges, with the table of chains in flight. */
PyObject *plain_keep_journal(PyObject *self, PyObject *args)
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
PyObject *plain_use_journal(PyObject *self, PyObject *view)
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
PyObject *plain_intend_entry(PyObject *self, PyObject *args)
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
	if (inode && (!get_number(inode, LOOKUPS, &lookups) || !get_number(inode, NAMED, &named)))
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
	    get_number(host, BY_HANDLE, &by_handle) && by_handle &&
	    get_number(inode, KIND, &kind) && get_number(inode, LOOKUPS, &lookups) &&
	    get_number(inode, NAMED, &named)) {
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
	if (!get_number(file, NODEID, &nodeid) || !get_number(file, FLAGS, &flags) ||
	    !get_number(file, APPEND_ONLY, &append_only) || !get_number(file, REMOTE, &remote))
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
PyObject *plain_commit(PyObject *self, PyObject *args)
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
