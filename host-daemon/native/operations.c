// SPDX-License-Identifier: Apache-2.0
/* The operations: what they ask of the host, and their replies. */
#include "native.h"

/* Write the reply, of which `size` bytes after the header are there; return its bytes. */
static int64_t reply_header(struct request *request, int error, uint64_t size)
{
	struct fuse_out_header header = {
		.len = (uint32_t)(OUT_HEADER + size),
		.error = -error,
		.unique = request->header.unique,
	};
	request->error = error;
	copy_slices(request->chain.writable, 0, &header, OUT_HEADER, true);
	return header.len;
}

static int64_t reply(struct request *request, void *payload, size_t size)
{
	copy_slices(request->chain.writable, OUT_HEADER, payload, size, true);
	return reply_header(request, 0, size);
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

static int64_t lookup(PlainRequests *self, struct request *request)
{
	struct fuse_entry_out out;
	uint64_t counted[3];
	if (!is_name(request->in.name, request->args_size))
		return LEAVE;
	int found = look_up(self, request->header.nodeid, request->in.name, &out, counted);
	if (!found && self->changes[0])
		record_change(self, request->header.unique, LOOKUPS_RECORD, counted, 3);
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
	    !get_number(budget, USED, &used) || !get_number(budget, MOST, &most) || used >= most ||
	    !get_number(inode->object, KIND, &kind) || kind != S_IFREG ||
	    !get_number(inode->object, NAMED, &named) ||
	    !get_number(inode->object, NODEID, &nodeid))
		return false;
	/* Without a name and not open it is stale. */
	return !named || find_number(self->references[COUNT_OF], (uint64_t)nodeid) ||
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
		record_change(self, request->header.unique, OPEN_FILE_RECORD, file, 6);
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
		record_change(self, request->header.unique, RELEASED_RECORD, &released, 1);
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
	int count = cut_slices(request->chain.writable, OUT_HEADER, in->size, slices);
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
	int count = cut_slices(request->chain.slices, IN_HEADER + sizeof(*in), in->size, slices);
	Py_BEGIN_ALLOW_THREADS
	done = pwritev2((int)file.fd, slices, count, (off_t)in->offset, 0);
	Py_END_ALLOW_THREADS
	if (done < 0)
		return LEAVE;
	out.size = (uint32_t)done;
	return reply(request, &out, sizeof(out));
}

const struct operation operations[OPCODES] = {
	[FUSE_LOOKUP] = {lookup, 2, sizeof(struct fuse_entry_out), true},
	[FUSE_GETATTR] = {getattr, sizeof(struct fuse_getattr_in), sizeof(struct fuse_attr_out)},
	[FUSE_OPEN] = {open_file, sizeof(struct fuse_open_in), sizeof(struct fuse_open_out), true},
	[FUSE_READ] = {read_file, sizeof(struct fuse_read_in), 0},
	[FUSE_WRITE] = {write_file, sizeof(struct fuse_write_in), sizeof(struct fuse_write_out)},
	[FUSE_FLUSH] = {flush, sizeof(struct fuse_flush_in), 0},
	[FUSE_RELEASE] = {release, sizeof(struct fuse_release_in), 0, true},
};
