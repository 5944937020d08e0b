// SPDX-License-Identifier: Apache-2.0
/* The interpreter's objects: their attributes, and the tables of inodes and open files. */
#include "native.h"

static const char *const names[NAMES] = {
	[APPEND_ONLY] = "append_only", [BY_HANDLE] = "by_handle", [ERRORS] = "errors", [FD] = "fd",
	[FLAGS] = "flags", [HOST_INODE] = "host_inode", [KEY] = "key", [KIND] = "kind",
	[LOOKUPS] = "lookups", [MOST] = "_most", [NAMED] = "named", [NODEID] = "nodeid",
	[READING] = "reading", [REMOTE] = "remote", [REQUESTS] = "requests", [USED] = "used",
};
PyObject *name_of[NAMES];

bool intern_names(void)
{
	for (int i = 0; i < NAMES; i++) {
		name_of[i] = PyUnicode_InternFromString(names[i]);
		if (!name_of[i])
			return false;
	}
	return true;
}

/* Get an attribute that is a number or a bool; false: there is none, an exception is set. */
bool get_number(PyObject *object, int name, long long *value)
{
	PyObject *found = PyObject_GetAttr(object, name_of[name]);
	if (!found)
		return false;
	*value = PyLong_AsLongLong(found);
	Py_DECREF(found);
	return *value != -1 || !PyErr_Occurred();
}

bool set_number(PyObject *object, int name, long long value)
{
	PyObject *number = PyLong_FromLongLong(value);
	bool done = number && !PyObject_SetAttr(object, name_of[name], number);
	Py_XDECREF(number);
	return done;
}

/* Return the value of a number in a table, borrowed; NULL if there is none. */
PyObject *find_number(PyObject *table, uint64_t number)
{
	PyObject *key = PyLong_FromUnsignedLongLong(number);
	if (!key)
		return NULL;
	PyObject *found = PyDict_GetItemWithError(table, key);
	Py_DECREF(key);
	return found;
}

void put_inode(struct inode *inode)
{
	Py_XDECREF(inode->object);
	Py_XDECREF(inode->host);
}

/* Find an inode, and make it the one that was used last: InodeTable.get(). */
bool get_inode(PlainRequests *self, uint64_t nodeid, struct inode *inode)
{
	PyObject *touched = NULL;
	long long remote, by_handle;
	inode->host = NULL;
	inode->object = Py_XNewRef(find_number(self->references[INODES], nodeid));
	if (!inode->object)
		return false;
	inode->host = PyObject_GetAttr(inode->object, name_of[HOST_INODE]);
	if (inode->host && get_number(inode->host, FD, &inode->fd) && inode->fd >= 0 &&
	    get_number(inode->host, REMOTE, &remote) && !remote &&
	    get_number(inode->host, BY_HANDLE, &by_handle)) {
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
bool get_file(PlainRequests *self, uint64_t nodeid, uint64_t fh, struct file *file)
{
	PyObject *object = Py_XNewRef(find_number(self->references[FILES], fh)), *reading = NULL;
	long long owner, remote;
	if (object && get_number(object, NODEID, &owner) && (uint64_t)owner == nodeid &&
	    get_number(object, FD, &file->fd) && get_number(object, FLAGS, &file->flags) &&
	    get_number(object, REMOTE, &remote) && !remote)
		reading = PyObject_GetAttr(object, name_of[READING]);
	file->immediate = reading == self->references[IMMEDIATE];
	file->if_in_memory = reading == self->references[IF_IN_MEMORY];
	Py_XDECREF(reading);
	Py_XDECREF(object);
	return reading;
}
