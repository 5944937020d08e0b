// SPDX-License-Identifier: Apache-2.0
/* Entries of a directory: their names, file handles and attributes, and look-ups of them. */
#include "native.h"

/* Read the file handle of a directory entry; return 0 or an errno. */
int read_place(int directory, const char *name, struct place *place)
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

/* As fuse/encode.py does. */
struct fuse_attr attributes(const struct stat *status)
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
	if (!get_number(inode, NODEID, &nodeid) || !get_number(inode, NAMED, &named) ||
	    !get_number(inode, LOOKUPS, &lookups))
		return false;
	counted[0] = (uint64_t)nodeid;
	counted[1] = (uint64_t)lookups + 1;
	counted[2] = named || status->st_nlink;
	return set_number(inode, LOOKUPS, lookups + 1) &&
	       (named || !status->st_nlink || !PyObject_SetAttr(inode, name_of[NAMED], Py_True));
}

/*
 * Look up an entry of a directory, and count that, if the inode is known by its handle and open.
 * Return 0, ENOENT, or LEAVE; the values of LookupsState.
 */
int look_up(PlainRequests *self, uint64_t parent_id, const char *name,
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
	if (!inode || !get_number(host, FD, &fd) || fd < 0 || !get_number(host, REMOTE, &remote) ||
	    remote || !get_number(inode, KIND, &kind) || fstat((int)fd, &status) ||
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
bool is_name(const char *name, size_t size)
{
	return size > 1 && memchr(name, 0, size) == name + size - 1 && !strchr(name, '/') &&
	       strcmp(name, ".") && strcmp(name, "..");
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
 * the count has changed is noted; the interpreter's code records the request that this is for.
 */
PyObject *plain_known_entry(PyObject *self, PyObject *args)
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
