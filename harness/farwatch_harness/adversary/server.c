// SPDX-License-Identifier: Apache-2.0
/*
 * A FUSE server on /dev/fuse that lies on command.  Its nodeids are the
 * addresses of its nodes, as those of a low-level server of libfuse are: with
 * AddressSanitizer a request for a forgotten node ends it.
 *
 * Usage: server MOUNT_POINT.  Reads commands from stdin, one a line, and from
 * the abstract datagram socket "farwatch-adversary"; answers "ok COMMAND".
 *
 *   options FLAGS MASK BACKGROUND VALID   what the next INIT is answered with:
 *                  all 64 flags, events, max_background, seconds of validity
 *   mount OPTIONS  open a connection and mount it
 *   lie KIND WHAT PERMILLE NUMBER         add a lie; KIND is fsnotify or rest
 *   true           remove all lies
 *   settle         the same, and answer what is held
 *   notify TIMES HEX                      send notifications with this payload
 *   lose           forget what is watched
 *   doubt          the client cannot know what is watched
 *   pause MILLISECONDS                    serve nothing for this time
 *   touch PATH | remove PATH | replace PATH   change the tree silently
 *   state          write "node ...", "belief ..." and "session ..." lines
 *   kill           close the connection
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <linux/fuse.h>
#include <poll.h>
#include <signal.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mount.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/uio.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

/* The compiler's command line defines the numbers of the protocol. */
#if !defined(FUSE_FSNOTIFY) || !defined(FUSE_NOTIFY_FSNOTIFY)
#error "FUSE_FSNOTIFY and FUSE_NOTIFY_FSNOTIFY are given on the command line"
#endif

#define BUFFER (1 << 17)
#define DATA 4096
#define ENTRIES 256
#define LIES 8
#define LINE (1 << 17)

struct node {
	struct node *next, *previous;
	uint64_t generation;
	uint32_t mode, links;
	uint64_t lookups, changed;
	bool submount, watched, certain, quiet;
	uint32_t mask;
	unsigned int entries, size;
	struct entry {
		char *name;
		struct node *node;
	} entry[ENTRIES];
	char data[DATA];
};

struct lie {
	char kind[16], what[16];
	int permille, number;
};

/* A deferred reply: it is sent at a time, or when the lies end. */
struct later {
	struct later *next;
	uint64_t due;
	bool held;
	size_t size;
	char reply[];
};

static struct node *root, *nodes;
/* The device of the last mount, as /proc numbers it. */
static unsigned long device;
static uint64_t generations;
static struct lie lies[LIES];
static int lie_count;
static struct later *laters;
static int fuse = -1;
/*
 * The process that sends notifications, and where it takes them from: it waits in
 * write(2) until the client has handled one, which may need answers from here.
 */
static pid_t reporter;
static int reports = -1;
static bool session;
static unsigned long requests;
static const char *mount_point;
static uint64_t init_flags;
static uint32_t watchable, background, validity;
static uint64_t negotiated;
static char request[BUFFER];
static char payload[BUFFER];

static void say(const char *format, ...)
{
	va_list words;

	va_start(words, format);
	vprintf(format, words);
	va_end(words);
	putchar('\n');
	fflush(stdout);
}

static uint64_t now(void)
{
	struct timespec time;

	clock_gettime(CLOCK_MONOTONIC, &time);
	return time.tv_sec * 1000ull + time.tv_nsec / 1000000;
}

/* The tree. */

static struct node *new_node(uint32_t mode)
{
	struct node *node = calloc(1, sizeof(*node));

	if (!node)
		abort();
	node->generation = generations++;
	node->mode = mode;
	node->links = 1;
	node->certain = true;
	node->next = nodes;
	if (nodes)
		nodes->previous = node;
	nodes = node;
	return node;
}

static void free_node(struct node *node)
{
	if (node == root)
		return;
	if (node->next)
		node->next->previous = node->previous;
	if (node->previous)
		node->previous->next = node->next;
	else
		nodes = node->next;
	free(node);
}

static struct entry *find_entry(struct node *directory, const char *name)
{
	for (unsigned int i = 0; i < directory->entries; i++) {
		if (!strcmp(directory->entry[i].name, name))
			return &directory->entry[i];
	}
	return NULL;
}

static void add_entry(struct node *directory, const char *name, struct node *node)
{
	directory->entry[directory->entries].name = strdup(name);
	directory->entry[directory->entries++].node = node;
	directory->changed++;
}

static void remove_entry(struct node *directory, struct entry *entry)
{
	free(entry->name);
	*entry = directory->entry[--directory->entries];
	directory->changed++;
}

static void unlinked(struct node *node)
{
	node->links = 0;
	while (node->entries) {
		struct node *child = node->entry[0].node;

		remove_entry(node, &node->entry[0]);
		unlinked(child);
	}
	if (!node->lookups)
		free_node(node);
}

/* The directory of a path, with the last name in `name`; NULL if there is none. */
static struct node *walk(const char *path, char name[256])
{
	struct node *node = root;
	char copy[1024], *save = NULL, *part, *following;

	snprintf(copy, sizeof(copy), "%s", path);
	part = strtok_r(copy, "/", &save);
	while (part && (following = strtok_r(NULL, "/", &save))) {
		struct entry *entry = find_entry(node, part);

		if (!entry)
			return NULL;
		node = entry->node;
		part = following;
	}
	snprintf(name, 256, "%s", part ? part : "");
	return part ? node : NULL;
}

static void make_path(const char *path, uint32_t mode)
{
	char name[256];
	struct node *directory = walk(path, name), *node;

	if (!directory || find_entry(directory, name) || directory->entries == ENTRIES)
		return;
	node = new_node(mode);
	node->submount = !strcmp(path, "sub");
	node->quiet = !strncmp(path, "quiet", 5);
	add_entry(directory, name, node);
}

static void remove_path(const char *path)
{
	char name[256];
	struct node *directory = walk(path, name);
	struct entry *entry = directory ? find_entry(directory, name) : NULL;

	if (entry && !entry->node->submount) {
		struct node *node = entry->node;

		remove_entry(directory, entry);
		unlinked(node);
	}
}

/* Forget everything that the client holds. */
static void forget_session(void)
{
	struct node *node, *next;

	session = false;
	for (node = nodes; node; node = next) {
		next = node->next;
		node->watched = false;
		node->certain = true;
		node->mask = 0;
		node->lookups = 0;
		if (!node->links)
			free_node(node);
	}
	while (laters) {
		struct later *later = laters;

		laters = later->next;
		free(later);
	}
}

/* Replies. */

static void send_bytes(const void *data, size_t size)
{
	const struct fuse_out_header *header = data;
	struct fuse_out_header refusal = {
		.len = sizeof(refusal), .error = -EIO, .unique = header->unique
	};

	if (fuse < 0 || write(fuse, data, size) >= 0)
		return;
	/* A client that refuses a reply still waits for one. */
	if (errno == EINVAL && header->unique && write(fuse, &refusal, sizeof(refusal)) < 0)
		errno = 0;
}

static void later_reply(const void *data, size_t size, int milliseconds, bool held)
{
	struct later *later = malloc(sizeof(*later) + size), **place = &laters;

	if (!later)
		abort();
	later->due = now() + milliseconds;
	later->held = held;
	later->size = size;
	memcpy(later->reply, data, size);
	while (*place)
		place = &(*place)->next;
	later->next = NULL;
	*place = later;
}

static void send_due(bool all)
{
	struct later **place = &laters;
	uint64_t time = now();

	while (*place) {
		struct later *later = *place;

		if (!all && (later->held || later->due > time)) {
			place = &later->next;
			continue;
		}
		*place = later->next;
		send_bytes(later->reply, later->size);
		free(later);
	}
}

static const struct lie *choose(const char *kind)
{
	int draw = rand() % 1000;

	for (int i = 0; i < lie_count; i++) {
		if (strcmp(lies[i].kind, kind))
			continue;
		draw -= lies[i].permille;
		if (draw < 0)
			return &lies[i];
	}
	return NULL;
}

static void reply(uint64_t unique, int error, size_t size, const struct lie *lie)
{
	static char data[BUFFER + sizeof(struct fuse_out_header)];
	struct fuse_out_header *header = (void *)data;

	if (error)
		size = 0;
	header->len = sizeof(*header) + size;
	header->error = error;
	header->unique = unique;
	memcpy(header + 1, payload, size);
	if (lie && !strcmp(lie->what, "delay")) {
		later_reply(data, header->len, lie->number, false);
	} else if (lie && !strcmp(lie->what, "hold")) {
		later_reply(data, header->len, 0, true);
	} else {
		send_bytes(data, header->len);
		if (lie && !strcmp(lie->what, "twice"))
			send_bytes(data, header->len);
	}
}

static void fill_attr(struct fuse_attr *attr, const struct node *node)
{
	memset(attr, 0, sizeof(*attr));
	attr->ino = node == root ? 1 : (uintptr_t)node;
	attr->size = S_ISDIR(node->mode) ? 4096 : node->size;
	attr->blocks = attr->size / 512;
	attr->mtime = attr->ctime = attr->atime = 1700000000 + node->changed;
	attr->mode = node->mode;
	attr->nlink = node->links;
	attr->blksize = 4096;
	attr->flags = node->submount ? 1 /* FUSE_ATTR_SUBMOUNT */ : 0;
}

static size_t entry_reply(struct node *node)
{
	struct fuse_entry_out *out = (void *)payload;

	memset(out, 0, sizeof(*out));
	node->lookups++;
	out->nodeid = (uintptr_t)node;
	out->generation = node->generation & 0xffffffff;
	out->entry_valid = out->attr_valid = validity;
	fill_attr(&out->attr, node);
	return sizeof(*out);
}

static void forget(uint64_t nodeid, uint64_t count)
{
	struct node *node = nodeid == FUSE_ROOT_ID ? root : (struct node *)(uintptr_t)nodeid;

	if (node == root)
		return;
	if (node->lookups < count) {
		say("bad FORGET of more lookups than there were");
		count = node->lookups;
	}
	node->lookups -= count;
	if (!node->lookups) {
		node->watched = false;
		node->certain = true;
		node->mask = 0;
		if (!node->links)
			free_node(node);
	}
}

static size_t init_reply(const struct fuse_init_in *in)
{
	struct fuse_init_out *out = (void *)payload;
	uint64_t offered = in->flags;

	if (offered & FUSE_INIT_EXT)
		offered |= (uint64_t)in->flags2 << 32;
	negotiated = offered & (init_flags | FUSE_INIT_EXT);
	memset(out, 0, 64);
	out->major = FUSE_KERNEL_VERSION;
	out->minor = FUSE_KERNEL_MINOR_VERSION;
	out->max_readahead = in->max_readahead;
	out->flags = (uint32_t)negotiated;
	out->flags2 = negotiated >> 32;
	out->max_background = background;
	out->congestion_threshold = background;
	out->max_write = 1 << 16;
	out->time_gran = 1;
	out->max_pages = 16;
	/* fsnotify_mask, the last word of the structure. */
	memcpy(payload + 60, &watchable, 4);
	return 64;
}

static void fsnotify(uint64_t unique, struct node *node, const void *args)
{
	const struct lie *lie = choose("fsnotify");
	uint32_t mask, answer[4] = { 0 };

	memcpy(&mask, args, sizeof(mask));
	uint64_t generation;

	memcpy(&generation, (const char *)args + 8, sizeof(generation));
	if (generation != (node == root ? 0 : node->generation & 0xffffffff)) {
		reply(unique, -ESTALE, 0, NULL);
		return;
	}
	if (lie && (!strcmp(lie->what, "error") || !strcmp(lie->what, "short"))) {
		node->certain = false;
		reply(unique, strcmp(lie->what, "error") ? 0 : -lie->number, 0, NULL);
		return;
	}
	node->watched = mask != 0;
	node->mask = mask;
	node->certain = true;
	if (lie && !strcmp(lie->what, "never"))
		return;
	answer[0] = lie && !strcmp(lie->what, "partial") ? mask & rand() : mask;
	memcpy(payload, answer, sizeof(answer));
	reply(unique, 0, sizeof(answer), lie);
}

static int rename_entry(struct node *from, uint64_t newdir, const char *old, const char *new)
{
	struct node *to = newdir == FUSE_ROOT_ID ? root : (struct node *)(uintptr_t)newdir;
	struct entry *entry = find_entry(from, old), *there;
	struct node *node, *replaced = NULL;

	if (!entry || !to->links)
		return -ENOENT;
	node = entry->node;
	if (node->submount || S_ISDIR(node->mode) || to->entries == ENTRIES)
		return -EBUSY;
	there = find_entry(to, new);
	if (there) {
		replaced = there->node;
		if (replaced->submount || replaced->entries)
			return -EBUSY;
		remove_entry(to, there);
		entry = find_entry(from, old);
		if (!entry)
			return 0;
	}
	remove_entry(from, entry);
	add_entry(to, new, node);
	if (replaced && replaced != node)
		unlinked(replaced);
	return 0;
}

static int make_new(struct node *directory, const char *name, uint32_t mode, struct node **made)
{
	if (!directory->links)
		return -ENOENT;
	if (find_entry(directory, name))
		return -EEXIST;
	if (directory->entries == ENTRIES)
		return -ENOSPC;
	*made = new_node(mode);
	add_entry(directory, name, *made);
	return 0;
}

static size_t read_directory(const struct node *node, uint64_t offset, size_t room)
{
	size_t size = 0;

	for (uint64_t i = offset; i < node->entries; i++) {
		struct fuse_dirent *dirent = (void *)(payload + size);
		size_t length = strlen(node->entry[i].name);
		size_t whole = FUSE_DIRENT_ALIGN(FUSE_NAME_OFFSET + length);

		if (size + whole > room)
			break;
		memset(dirent, 0, whole);
		dirent->ino = (uintptr_t)node->entry[i].node;
		dirent->off = i + 1;
		dirent->namelen = length;
		dirent->type = node->entry[i].node->mode >> 12;
		memcpy(dirent->name, node->entry[i].name, length);
		size += whole;
	}
	return size;
}

static void start_reporter(void)
{
	static char data[BUFFER];
	ssize_t size;
	int ends[2];

	if (socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, ends))
		exit(1);
	reporter = fork();
	if (!reporter) {
		prctl(PR_SET_PDEATHSIG, SIGKILL);
		close(ends[0]);
		while ((size = recv(ends[1], data, sizeof(data), 0)) > 0)
			send_bytes(data, size);
		_exit(0);
	}
	close(ends[1]);
	reports = ends[0];
}

/* Ends the connection, as the death of a server does. */
static void disconnect(void)
{
	if (fuse < 0)
		return;
	kill(reporter, SIGKILL);
	waitpid(reporter, NULL, 0);
	close(reports);
	close(fuse);
	fuse = -1;
	forget_session();
}

static void serve(void)
{
	ssize_t got = read(fuse, request, sizeof(request));
	struct fuse_in_header *in = (void *)request;
	const char *args = request + sizeof(*in);
	const struct lie *lie;
	struct node *node, *made = NULL;
	struct entry *entry;
	size_t size = 0;
	int error = 0;

	if (got < (ssize_t)sizeof(*in)) {
		if (got < 0 && errno == ENODEV)
			disconnect();
		return;
	}
	requests++;
	request[got < BUFFER ? got : BUFFER - 1] = 0;
	if (in->opcode == FUSE_INIT) {
		forget_session();
		session = true;
		reply(in->unique, 0, init_reply((const void *)args), NULL);
		return;
	}
	if (!session)
		say("bad request %u while there is no session", in->opcode);
	if (in->opcode == FUSE_FORGET) {
		forget(in->nodeid, ((const struct fuse_forget_in *)args)->nlookup);
		return;
	}
	if (in->opcode == FUSE_BATCH_FORGET) {
		const struct fuse_batch_forget_in *batch = (const void *)args;
		const struct fuse_forget_one *one = (const void *)(batch + 1);

		for (uint32_t i = 0; i < batch->count; i++)
			forget(one[i].nodeid, one[i].nlookup);
		return;
	}
	if (in->opcode == FUSE_INTERRUPT)
		return;
	if (in->opcode == FUSE_DESTROY) {
		reply(in->unique, 0, 0, NULL);
		forget_session();
		return;
	}
	node = in->nodeid == FUSE_ROOT_ID ? root : (struct node *)(uintptr_t)in->nodeid;
	/* The first use of the address: AddressSanitizer checks it here. */
	if (node != root && !node->lookups)
		say("bad request %u for a node that was forgotten", in->opcode);
	lie = choose("rest");
	switch (in->opcode) {
	case FUSE_FSNOTIFY:
		fsnotify(in->unique, node, args);
		return;
	case FUSE_LOOKUP:
		entry = find_entry(node, args);
		if (entry)
			size = entry_reply(entry->node);
		else
			error = -ENOENT;
		break;
	case FUSE_SETATTR: {
		const struct fuse_setattr_in *set = (const void *)args;

		if (set->valid & FATTR_SIZE && S_ISREG(node->mode))
			node->size = set->size < DATA ? set->size : DATA;
		if (set->valid & FATTR_MODE)
			node->mode = (node->mode & S_IFMT) | (set->mode & 07777);
		node->changed++;
	}
	/* fall through */
	case FUSE_GETATTR: {
		struct fuse_attr_out *out = (void *)payload;

		memset(out, 0, sizeof(*out));
		out->attr_valid = validity;
		fill_attr(&out->attr, node);
		size = sizeof(*out);
		break;
	}
	case FUSE_OPEN:
	case FUSE_OPENDIR:
		memset(payload, 0, sizeof(struct fuse_open_out));
		size = sizeof(struct fuse_open_out);
		break;
	case FUSE_READDIR: {
		const struct fuse_read_in *read = (const void *)args;

		size = read_directory(node, read->offset, read->size);
		break;
	}
	case FUSE_READ: {
		const struct fuse_read_in *read = (const void *)args;

		if (read->offset < node->size) {
			size = node->size - read->offset;
			size = size < read->size ? size : read->size;
			memcpy(payload, node->data + read->offset, size);
		}
		break;
	}
	case FUSE_WRITE: {
		const struct fuse_write_in *write = (const void *)args;
		struct fuse_write_out *out = (void *)payload;

		if (write->offset + write->size > DATA) {
			error = -EFBIG;
			break;
		}
		memcpy(node->data + write->offset, write + 1, write->size);
		if (node->size < write->offset + write->size)
			node->size = write->offset + write->size;
		node->changed++;
		out->size = write->size;
		out->padding = 0;
		size = sizeof(*out);
		break;
	}
	case FUSE_MKNOD:
		error = make_new(node, args + sizeof(struct fuse_mknod_in),
				 ((const struct fuse_mknod_in *)args)->mode, &made);
		break;
	case FUSE_MKDIR:
		error = make_new(node, args + sizeof(struct fuse_mkdir_in),
				 S_IFDIR | ((const struct fuse_mkdir_in *)args)->mode, &made);
		break;
	case FUSE_CREATE:
		error = make_new(node, args + sizeof(struct fuse_create_in),
				 ((const struct fuse_create_in *)args)->mode, &made);
		break;
	case FUSE_UNLINK:
	case FUSE_RMDIR:
		entry = find_entry(node, args);
		if (!entry) {
			error = -ENOENT;
		} else if (entry->node->submount || entry->node->entries) {
			error = -EBUSY;
		} else {
			made = entry->node;
			remove_entry(node, entry);
			unlinked(made);
			made = NULL;
		}
		break;
	case FUSE_RENAME:
	case FUSE_RENAME2: {
		const struct fuse_rename2_in *move = (const void *)args;
		const char *old = args + (in->opcode == FUSE_RENAME ?
					  sizeof(struct fuse_rename_in) : sizeof(*move));

		error = rename_entry(node, move->newdir, old, old + strlen(old) + 1);
		break;
	}
	case FUSE_STATFS: {
		struct fuse_statfs_out *out = (void *)payload;

		memset(out, 0, sizeof(*out));
		out->st.bsize = out->st.frsize = 4096;
		out->st.namelen = 255;
		size = sizeof(*out);
		break;
	}
	case FUSE_FLUSH:
	case FUSE_RELEASE:
	case FUSE_RELEASEDIR:
	case FUSE_FSYNC:
	case FUSE_FSYNCDIR:
	case FUSE_ACCESS:
		break;
	default:
		error = -ENOSYS;
	}
	if (made) {
		size = entry_reply(made);
		if (in->opcode == FUSE_CREATE) {
			memset(payload + size, 0, sizeof(struct fuse_open_out));
			size += sizeof(struct fuse_open_out);
		}
	}
	reply(in->unique, error, size, lie);
}

/* Commands. */

static bool mount_now(const char *options)
{
	struct statx found;
	char text[256];

	disconnect();
	fuse = open("/dev/fuse", O_RDWR | O_CLOEXEC | O_NONBLOCK);
	snprintf(text, sizeof(text), "fd=%d,rootmode=40000,user_id=0,group_id=0,%s", fuse, options);
	mkdir(mount_point, 0777);
	if (mount("fuse_server", mount_point, "fuse", 0, text)) {
		close(fuse);
		fuse = -1;
		return false;
	}
	start_reporter();
	/* This sends no request: the reply would have to come from here. */
	if (!statx(AT_FDCWD, mount_point, AT_STATX_DONT_SYNC, 0, &found))
		device = (unsigned long)found.stx_dev_major << 20 | found.stx_dev_minor;
	return true;
}

static void notify(int times, const char *hex)
{
	static char data[BUFFER];
	struct fuse_out_header *header = (void *)data;
	size_t size = 0;
	unsigned int byte;

	while (size < BUFFER - sizeof(*header) && sscanf(hex + 2 * size, "%2x", &byte) == 1)
		data[sizeof(*header) + size++] = (char)byte;
	header->len = sizeof(*header) + size;
	header->error = FUSE_NOTIFY_FSNOTIFY;
	header->unique = 0;
	while (times > 0 && fuse >= 0) {
		struct pollfd ready[2] = {
			{ .fd = reports, .events = POLLOUT },
			{ .fd = fuse, .events = POLLIN },
		};

		if (send(reports, data, header->len, MSG_DONTWAIT | MSG_NOSIGNAL) >= 0) {
			times--;
			continue;
		}
		if (errno != EAGAIN)
			return;
		poll(ready, 2, 1);
		send_due(false);
		if (ready[1].revents)
			serve();
	}
}

static void state(void)
{
	say("session %d %llu %lu", session && fuse >= 0, (unsigned long long)negotiated, device);
	for (struct node *node = nodes; node; node = node->next) {
		unsigned long long nodeid = node == root ? 1 : (uintptr_t)node;

		say("node %llu %llu %d %d", nodeid,
		    (unsigned long long)(node->generation & 0xffffffff),
		    S_ISDIR(node->mode), node->quiet);
		if (node->watched || !node->certain)
			say("belief %llu %u %d", nodeid, node->mask, node->certain);
	}
}

static void command(char *line)
{
	char *save = NULL, *name = strtok_r(line, " ", &save), *rest = save;

	if (!name)
		return;
	if (!strcmp(name, "options"))
		sscanf(rest, "%llu %u %u %u", (unsigned long long *)&init_flags, &watchable,
		       &background, &validity);
	else if (!strcmp(name, "mount"))
		mount_now(rest && *rest ? rest : "allow_other,default_permissions");
	else if (!strcmp(name, "lie") && lie_count < LIES) {
		struct lie *lie = &lies[lie_count];

		if (sscanf(rest, "%15s %15s %d %d", lie->kind, lie->what, &lie->permille,
			   &lie->number) == 4)
			lie_count++;
	} else if (!strcmp(name, "true")) {
		lie_count = 0;
	} else if (!strcmp(name, "settle")) {
		lie_count = 0;
		send_due(true);
	} else if (!strcmp(name, "notify")) {
		int times = (int)strtol(rest, &rest, 10);

		notify(times, rest + 1);
	} else if (!strcmp(name, "pause")) {
		usleep(1000 * (useconds_t)strtoul(rest, NULL, 10));
	} else if (!strcmp(name, "lose")) {
		for (struct node *node = nodes; node; node = node->next)
			node->watched = false;
	} else if (!strcmp(name, "doubt")) {
		for (struct node *node = nodes; node; node = node->next)
			node->certain = node->certain && !node->watched;
	} else if (!strcmp(name, "touch")) {
		make_path(rest, S_IFREG | 0666);
	} else if (!strcmp(name, "mkdir")) {
		make_path(rest, S_IFDIR | 0777);
	} else if (!strcmp(name, "remove")) {
		remove_path(rest);
	} else if (!strcmp(name, "replace")) {
		remove_path(rest);
		make_path(rest, S_IFREG | 0666);
	} else if (!strcmp(name, "state")) {
		state();
	} else if (!strcmp(name, "requests")) {
		say("requests %lu", requests);
	} else if (!strcmp(name, "seed")) {
		srand(strtoul(rest, NULL, 10));
	} else if (!strcmp(name, "kill")) {
		disconnect();
	}
	say("ok %s", name);
}

static int control_socket(void)
{
	struct sockaddr_un address = { .sun_family = AF_UNIX, .sun_path = "\0farwatch-adversary" };
	int control = socket(AF_UNIX, SOCK_DGRAM | SOCK_CLOEXEC, 0);

	if (bind(control, (void *)&address, sizeof(sa_family_t) + 1 + strlen("farwatch-adversary")))
		exit(1);
	return control;
}

int main(int argc, char **argv)
{
	static char line[LINE], buffer[LINE];
	size_t filled = 0;
	int control;

	if (argc != 2)
		return 2;
	mount_point = argv[1];
	root = new_node(S_IFDIR | 0777);
	control = control_socket();
	say("ready");
	for (;;) {
		struct pollfd ready[3] = {
			{ .fd = 0, .events = POLLIN },
			{ .fd = control, .events = POLLIN },
			{ .fd = fuse, .events = POLLIN },
		};
		char *end;
		ssize_t got;

		poll(ready, 3, laters ? 1 : 1000);
		send_due(false);
		if (ready[1].revents) {
			got = recv(control, line, sizeof(line) - 1, MSG_DONTWAIT);
			if (got > 0) {
				line[got] = 0;
				command(line);
			}
		}
		if (ready[0].revents) {
			got = read(0, buffer + filled, sizeof(buffer) - filled - 1);
			if (got <= 0)
				return 0;
			filled += got;
			while ((end = memchr(buffer, '\n', filled))) {
				size_t used = end + 1 - buffer;

				*end = 0;
				memcpy(line, buffer, used);
				filled -= used;
				memmove(buffer, buffer + used, filled);
				command(line);
			}
		}
		if (fuse >= 0 && ready[2].revents && ready[2].fd == fuse)
			serve();
	}
}
