// SPDX-License-Identifier: Apache-2.0
/*
 * The guest's half of the adversary: processes that mount, watch and change a
 * share concurrently, as the host commands.
 *
 * Usage: storm.  Reads commands, one a line:
 *
 *   spawn PROCESS UID        start the process PROCESS (0..7) as that user
 *   do ACTOR OP;OP;...       have an actor run these; two actors are the two
 *                            threads of process ACTOR/2 and share its slots
 *   report                   print the watches of all processes
 *   steps                    print how many steps were done
 *   drain                    read and forget all events
 *   heard MILLISECONDS       read events until none comes for this time
 *   quit
 *
 * and writes lines: "done ACTOR", "died PROCESS", "bad TEXT" for what no kernel
 * may do, "watch ...", "event ..." and "ok COMMAND" when a command is finished.
 */
#define _GNU_SOURCE
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <grp.h>
#include <limits.h>
#include <poll.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/fanotify.h>
#include <sys/inotify.h>
#include <sys/mman.h>
#include <sys/mount.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/sysmacros.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#define PROCESSES 8
#define ACTORS (2 * PROCESSES)
#define SLOTS 9
#define LINE (1 << 17)
/* Where the processes are, so that they can be frozen. */
#define CGROUP "/run/fw-cgroup/storm"

#ifndef FAN_REPORT_REMOTE
#define FAN_REPORT_REMOTE 0x8000
#define FAN_REMOTE_ONLY 0x10000
#define FAN_REMOTE 0x04000000
#endif
#ifndef FAN_RENAME
#define FAN_RENAME 0x10000000
#endif

/* The dnotify watches of a process, which /proc does not show. */
struct dnotify {
	unsigned long ino, device;
	uint32_t mask;
};

struct shared {
	pid_t pid[PROCESSES];
	struct dnotify dnotify[PROCESSES][SLOTS];
	/* How many steps all actors have done. */
	_Atomic unsigned long steps;
};

static struct shared *shared;
static int pipes[ACTORS][2];
static int own_process;
/* Which of the two threads of its process a thread is, and whether its calls may fail. */
static __thread int own_thread;
static __thread bool failing;

/* One line at a time, whole, whoever writes. */
static void say(const char *format, ...)
{
	char line[1024];
	va_list words;
	int length;

	va_start(words, format);
	length = vsnprintf(line, sizeof(line) - 1, format, words);
	va_end(words);
	if (length > (int)sizeof(line) - 2)
		length = sizeof(line) - 2;
	line[length++] = '\n';
	if (write(1, line, length) < 0)
		_exit(1);
}

/* Writes to a file of the kernel: what would be echo TEXT > FILE. */
static bool put(const char *path, const char *text)
{
	int fd = open(path, O_WRONLY | O_CLOEXEC);
	bool done;

	if (fd < 0)
		return false;
	done = write(fd, text, strlen(text)) >= 0;
	close(fd);
	return done;
}

/*
 * Lets this thread's allocations and copies fail, as far as the kernel has been
 * asked to, or ends that.  To end it may take some attempts, which fail, too.
 */
static void inject(bool on)
{
	char path[64];

	if (!failing)
		return;
	snprintf(path, sizeof(path), "/proc/self/task/%d/make-it-fail", gettid());
	for (int attempt = 0; attempt < 1000; attempt++) {
		if (put(path, on ? "1" : "0") || errno == ENOENT)
			return;
	}
	say("bad command fail: make-it-fail cannot be set, errno %d", errno);
}

/* What a process holds: one descriptor a slot, used by both of its threads. */
static _Atomic int slots[SLOTS];

static long number(const char *word)
{
	return word ? strtol(word, NULL, 0) : 0;
}

static int slot_of(const char *word)
{
	return (int)(number(word) % SLOTS);
}

/* Give a slot a descriptor, or -1.  The other thread may do so at the same time. */
static void fill_slot(int slot, int fd)
{
	int former = atomic_exchange(&slots[slot], fd);

	if (former >= 0)
		close(former);
}

static void close_slot(int slot)
{
	shared->dnotify[own_process][slot].mask = 0;
	fill_slot(slot, -1);
}

/* The descriptor of a slot, made by `make` when there is none. */
static int fd_of(int slot, int (*make)(void))
{
	int fd = slots[slot], there = -1;

	if (fd < 0) {
		fd = make();
		if (!atomic_compare_exchange_strong(&slots[slot], &there, fd)) {
			close(fd);
			fd = there;
		}
	}
	return fd;
}

static int new_inotify(void)
{
	return inotify_init1(IN_NONBLOCK | IN_CLOEXEC);
}

static int fanotify_group(unsigned int flags)
{
	return fanotify_init(FAN_CLASS_NOTIF | FAN_REPORT_DFID_NAME | FAN_REPORT_FID | flags |
			     FAN_NONBLOCK | FAN_CLOEXEC | FAN_UNLIMITED_MARKS, O_RDONLY);
}

static int new_fanotify(void)
{
	return fanotify_group(0);
}

static bool quiet_path(const char *path)
{
	return strstr(path, "/quiet/") != NULL;
}

/* Which mount a path is on, 0 for none, and its inode, without asking the server. */
static uint64_t mount_of(const char *path, unsigned long *ino)
{
	struct statx found;

	if (statx(AT_FDCWD, path, AT_STATX_DONT_SYNC, 0x4000 /* STATX_MNT_ID_UNIQUE */, &found))
		return 0;
	*ino = found.stx_ino;
	return found.stx_mnt_id;
}

struct marks {
	int count;
	struct {
		int wd;
		unsigned long ino;
		uint32_t mask;
	} mark[256];
};

/* The watches of an inotify instance by what the kernel itself says. */
static bool read_marks(int fd, struct marks *marks)
{
	char path[64], line[512];
	FILE *info;

	marks->count = 0;
	snprintf(path, sizeof(path), "/proc/self/fdinfo/%d", fd);
	info = fopen(path, "r");
	if (!info)
		return false;
	while (fgets(line, sizeof(line), info) && marks->count < 256) {
		int wd;
		unsigned long ino, sdev;
		uint32_t mask;

		if (sscanf(line, "inotify wd:%x ino:%lx sdev:%lx mask:%x", &wd, &ino, &sdev,
			   &mask) == 4) {
			marks->mark[marks->count].wd = wd;
			marks->mark[marks->count].ino = ino;
			marks->mark[marks->count++].mask = mask;
		}
	}
	fclose(info);
	return true;
}

static int find_mark(const struct marks *marks, int wd)
{
	for (int i = 0; i < marks->count; i++) {
		if (marks->mark[i].wd == wd)
			return i;
	}
	return -1;
}

/*
 * A call on a private instance has returned: a failed one must have left the watch
 * of the object as it was, and one that succeeded is to be seen.  Only for objects
 * that nobody else takes away.
 */
static void check_add(int fd, const char *path, unsigned long ino, uint32_t mask, int wd,
		      int error, const struct marks *before)
{
	struct marks after;

	if (!read_marks(fd, &after))
		return;
	if (wd >= 0) {
		int at = find_mark(&after, wd);

		if (at < 0)
			say("bad inotify_add_watch(%s) returned %d, which is no watch", path, wd);
		else if (mask & IN_ALL_EVENTS & ~after.mark[at].mask)
			say("bad inotify_add_watch(%s, %#x) left the mask %#x", path, mask,
			    after.mark[at].mask);
		return;
	}
	for (int i = 0; i < before->count; i++) {
		int at = find_mark(&after, before->mark[i].wd);

		if (before->mark[i].ino != ino)
			continue;
		if (at < 0)
			say("bad a failed inotify_add_watch(%s, %#x), errno %d,"
			    " removed the watch %d of inode %#lx",
			    path, mask, error, before->mark[i].wd, before->mark[i].ino);
		else if (before->mark[i].mask & IN_ALL_EVENTS & ~after.mark[at].mask)
			say("bad a failed inotify_add_watch(%s, %#x), errno %d,"
			    " changed a mask from %#x to %#x",
			    path, mask, error, before->mark[i].mask, after.mark[at].mask);
	}
}

static void op_iadd(char **words)
{
	int slot = slot_of(words[0]);
	/* Slots below 4 belong to one thread each. */
	bool checked = slot < 4 && quiet_path(words[1]);
	uint32_t mask = number(words[2]);
	struct marks before = { 0 };
	unsigned long ino = 0, now = 0;
	uint64_t mount = 0;
	int fd = fd_of(slot, new_inotify), wd, error;

	if (checked) {
		/* What is read here must be whole. */
		inject(false);
		mount = mount_of(words[1], &ino);
		checked = mount && read_marks(fd, &before);
		inject(true);
	}
	wd = inotify_add_watch(fd, words[1], mask);
	error = errno;
	inject(false);
	if (checked && mount == mount_of(words[1], &now) && now == ino)
		check_add(fd, words[1], ino, mask, wd, error, &before);
}

static void op_imany(char **words)
{
	int fd = fd_of(slot_of(words[0]), new_inotify);
	long count = number(words[2]);
	char path[512];

	for (long i = 0; i < count; i++) {
		snprintf(path, sizeof(path), "%s/%ld", words[1], i);
		if (inotify_add_watch(fd, path, number(words[3])) < 0 && errno != EEXIST)
			break;
	}
}

/*
 * Goes over the files of a directory and changes its watches of each at random.
 * Who does the same at the same time meets it at the same files.
 */
static void op_icross(char **words)
{
	int fd = fd_of(slot_of(words[0]), new_inotify), wd = -1;
	long count = number(words[2]);
	unsigned int seed = number(words[3]);
	char path[512];

	for (long i = 0; i < count; i++) {
		uint32_t mask = (rand_r(&seed) & IN_ALL_EVENTS) | IN_ATTRIB;
		int kind = rand_r(&seed) % 20;

		snprintf(path, sizeof(path), "%s/%ld", words[1], i);
		if (kind < 3) {
			inotify_rm_watch(fd, wd);
			continue;
		}
		if (kind < 6)
			mask |= IN_MASK_ADD;
		else if (kind < 14)
			mask |= IN_MASK_CREATE;
		/* The second time one with IN_MASK_CREATE fails. */
		for (int turn = 0; turn < 2; turn++) {
			int added = inotify_add_watch(fd, path, mask);

			if (added >= 0)
				wd = added;
			else if (errno != EEXIST)
				return;
		}
	}
}

/* At which file each of the two threads is, or LONG_MAX outside of op_imeet(). */
static _Atomic long meeting[2] = { LONG_MAX, LONG_MAX };

/* How long a thread waits for the other one to begin, and at each file. */
enum { BEGIN_MS = 2000, MEET_MS = 50 };

static long milliseconds(void)
{
	struct timespec now;

	clock_gettime(CLOCK_MONOTONIC, &now);
	return now.tv_sec * 1000 + now.tv_nsec / 1000000;
}

/* Waits until the other thread has come to a file, or has gone. */
static void meet(long place)
{
	long end = milliseconds() + MEET_MS;

	while (meeting[!own_thread] < place && milliseconds() < end)
		usleep(20);
}

/*
 * Goes over the files of a directory together with the other thread: at each
 * file one of them ("fail") has a watch and fails to add it again, over and over,
 * while the other one ("add") adds its own watch.  What a failing call undoes
 * must not be what the other one has just done.
 */
static void op_imeet(char **words)
{
	int fd = fd_of(slot_of(words[0]), new_inotify);
	long count = number(words[2]);
	bool fails = !strcmp(words[3], "fail");
	unsigned int seed = number(words[4]);
	long end = milliseconds() + BEGIN_MS;
	char path[512];

	meeting[own_thread] = -1;
	while (meeting[!own_thread] == LONG_MAX && milliseconds() < end)
		usleep(100);
	for (long i = 0; i < count; i++) {
		uint32_t mask = (rand_r(&seed) & IN_ALL_EVENTS) | IN_ATTRIB;

		/* A sign of life: all of it takes long. */
		shared->steps++;
		snprintf(path, sizeof(path), "%s/%ld", words[1], i);
		if (fails) {
			if (inotify_add_watch(fd, path, mask & 0x3f) < 0)
				break;
			meeting[own_thread] = i;
			meet(i);
			for (int turn = 0; turn < 5000 && meeting[!own_thread] <= i; turn++)
				inotify_add_watch(fd, path, IN_ATTRIB | IN_MASK_CREATE);
			meeting[own_thread] = i + 1;
		} else {
			meeting[own_thread] = i;
			meet(i);
			for (volatile int turn = rand_r(&seed) % 20000; turn > 0; turn--)
				;
			if (inotify_add_watch(fd, path, mask) < 0)
				break;
			meeting[own_thread] = i + 1;
			meet(i + 1);
		}
	}
	meeting[own_thread] = LONG_MAX;
}

static void op_irm(char **words)
{
	struct marks marks;
	int fd = slots[slot_of(words[0])];
	bool read;

	if (fd < 0)
		return;
	inject(false);
	read = read_marks(fd, &marks);
	inject(true);
	if (!read || !marks.count)
		return;
	inotify_rm_watch(fd, marks.mark[number(words[1]) % marks.count].wd);
}

/* A new group with these flags; without them on a kernel that does not know them. */
static void op_fgroup(char **words)
{
	int slot = slot_of(words[0]), fd = fanotify_group(strtoul(words[1], NULL, 0));

	fill_slot(slot, fd < 0 && errno == EINVAL ? new_fanotify() : fd);
}

static void op_fmark(char **words)
{
	int fd = fd_of(slot_of(words[0]), new_fanotify);
	unsigned int flags = strcmp(words[2], "add") ? FAN_MARK_REMOVE : FAN_MARK_ADD;
	uint64_t mask = strtoull(words[3], NULL, 0);

	if (fanotify_mark(fd, flags, mask, AT_FDCWD, words[1]) > 0)
		say("bad fanotify_mark(%s) returned more than 0", words[1]);
}

static void op_dnotify(char **words)
{
	static const struct {
		uint32_t dnotify, event;
	} bits[] = {
		{ DN_ACCESS, IN_ACCESS },
		{ DN_MODIFY, IN_MODIFY },
		{ DN_CREATE, IN_CREATE | IN_MOVED_TO },
		{ DN_DELETE, IN_DELETE | IN_MOVED_FROM },
		{ DN_ATTRIB, IN_ATTRIB },
	};
	int slot = slot_of(words[0]), fd;
	uint32_t wanted = number(words[2]), mask = 0;
	struct dnotify *watch = &shared->dnotify[own_process][slot];
	struct stat found;

	close_slot(slot);
	fd = open(words[1], O_RDONLY | O_DIRECTORY | O_CLOEXEC);
	if (fd < 0)
		return;
	fill_slot(slot, fd);
	fcntl(fd, F_SETSIG, SIGUSR1);
	if (fstat(fd, &found) || fcntl(fd, F_NOTIFY, wanted | DN_MULTISHOT))
		return;
	for (size_t i = 0; i < sizeof(bits) / sizeof(bits[0]); i++) {
		if (wanted & bits[i].dnotify)
			mask |= bits[i].event;
	}
	watch->ino = found.st_ino;
	watch->device = (unsigned long)major(found.st_dev) << 20 | minor(found.st_dev);
	watch->mask = mask;
}

static void op_close(char **words)
{
	close_slot(slot_of(words[0]));
}

static void op_open(char **words)
{
	int slot = slot_of(words[0]);

	close_slot(slot);
	fill_slot(slot, open(words[1], number(words[2]) | O_CLOEXEC | O_NONBLOCK, 0666));
}

static void op_write(char **words)
{
	int fd = open(words[0], O_WRONLY | O_CREAT | O_CLOEXEC | O_NONBLOCK, 0666);

	if (fd < 0)
		return;
	if (write(fd, "storm", 5) < 0)
		errno = 0;
	close(fd);
}

static void op_read(char **words)
{
	char data[64];
	int fd = open(words[0], O_RDONLY | O_CLOEXEC | O_NONBLOCK);

	if (fd < 0)
		return;
	if (read(fd, data, sizeof(data)) < 0)
		errno = 0;
	close(fd);
}

static void op_unlink(char **words)
{
	if (unlink(words[0]) && errno == EISDIR)
		rmdir(words[0]);
}

static void op_mkdir(char **words)
{
	mkdir(words[0], 0777);
}

static void op_rename(char **words)
{
	rename(words[0], words[1]);
}

static void op_chmod(char **words)
{
	chmod(words[0], number(words[1]));
}

static void op_truncate(char **words)
{
	if (truncate(words[0], number(words[1])))
		errno = 0;
}

static void op_ls(char **words)
{
	DIR *directory = opendir(words[0]);

	if (!directory)
		return;
	while (readdir(directory))
		;
	closedir(directory);
}

static void op_stat(char **words)
{
	struct stat found;

	if (stat(words[0], &found))
		errno = 0;
}

/* A process that stays in a directory, so that it cannot be unmounted. */
static void op_chdir(char **words)
{
	if (chdir(words[0]))
		errno = 0;
}

static void op_mount(char **words)
{
	mkdir(words[1], 0777);
	mount(words[0], words[1], words[2], 0, words[3]);
}

static void op_umount(char **words)
{
	umount2(words[0], number(words[1]));
}

static void op_put(char **words)
{
	put(words[0], words[1]);
}

/* Writes one byte at an offset: a register of a PCI device, for instance. */
static void op_poke(char **words)
{
	int fd = open(words[0], O_WRONLY | O_CLOEXEC);
	uint8_t byte = number(words[2]);

	if (fd < 0 || pwrite(fd, &byte, 1, number(words[1])) != 1)
		say("bad command poke: %s: errno %d", words[0], errno);
	if (fd >= 0)
		close(fd);
}

/*
 * Freeze all processes, with this one, for a number of microseconds, wherever
 * they are.  A process outside of their control group thaws them.
 */
static void op_frozen(char **words)
{
	pid_t child;

	inject(false);
	child = fork();
	if (!child) {
		signal(SIGTERM, SIG_IGN);
		if (put(CGROUP "/../cgroup.procs", "0") && put(CGROUP "/cgroup.freeze", "1"))
			usleep(number(words[0]));
		else
			say("bad command frozen: errno %d", errno);
		_exit(!put(CGROUP "/cgroup.freeze", "0"));
	}
	if (child > 0)
		waitpid(child, NULL, 0);
}

static void op_kill(char **words)
{
	int process = number(words[0]) % PROCESSES;

	if (shared->pid[process] > 0)
		kill(shared->pid[process], SIGKILL);
}

static void op_sleep(char **words)
{
	usleep(number(words[0]));
}

static void op_eat(char **words)
{
	size_t size = number(words[0]) << 20;
	char *memory = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

	if (memory == MAP_FAILED)
		return;
	for (size_t at = 0; at < size; at += 4096)
		memory[at] = 1;
	munmap(memory, size);
}

/*
 * Asks the server on /dev/fuse for something that it has to do itself, and
 * gives it a moment for it: a mount is there when this returns, or was refused.
 */
static void op_ask(char **words)
{
	struct sockaddr_un address = { .sun_family = AF_UNIX, .sun_path = "\0farwatch-adversary" };
	socklen_t size = sizeof(sa_family_t) + 1 + strlen("farwatch-adversary");
	int control = socket(AF_UNIX, SOCK_DGRAM | SOCK_CLOEXEC, 0);
	char text[256];

	snprintf(text, sizeof(text), "%s %s", words[0], words[1] ? words[1] : "");
	if (sendto(control, text, strlen(text), 0, (void *)&address, size) < 0)
		errno = 0;
	close(control);
	usleep(50000);
}

/* From here on steps of this thread may fail because there is no memory. */
static void op_fail(char **words)
{
	failing = number(words[0]) != 0;
}

static const struct {
	const char *name;
	void (*run)(char **words);
	int words;
} ops[] = {
	{ "iadd", op_iadd, 3 },		{ "imany", op_imany, 4 },
	{ "irm", op_irm, 2 },		{ "fmark", op_fmark, 4 },
	{ "dnotify", op_dnotify, 3 },	{ "close", op_close, 1 },
	{ "open", op_open, 3 },		{ "write", op_write, 1 },
	{ "read", op_read, 1 },		{ "unlink", op_unlink, 1 },
	{ "mkdir", op_mkdir, 1 },	{ "rename", op_rename, 2 },
	{ "chmod", op_chmod, 2 },	{ "truncate", op_truncate, 2 },
	{ "ls", op_ls, 1 },		{ "stat", op_stat, 1 },
	{ "chdir", op_chdir, 1 },	{ "mount", op_mount, 3 },
	{ "umount", op_umount, 2 },	{ "put", op_put, 2 },
	{ "kill", op_kill, 1 },		{ "sleep", op_sleep, 1 },
	{ "eat", op_eat, 1 },		{ "fail", op_fail, 1 },
	{ "ask", op_ask, 1 },		{ "icross", op_icross, 4 },
	{ "imeet", op_imeet, 5 },	{ "poke", op_poke, 3 },
	{ "frozen", op_frozen, 1 },	{ "fgroup", op_fgroup, 2 },
};

static void run_op(char *text)
{
	char *words[8] = { 0 }, *save = NULL;
	int count = 0;

	for (char *word = strtok_r(text, " ", &save); word && count < 7;
	     word = strtok_r(NULL, " ", &save))
		words[count++] = word;
	if (!count)
		return;
	for (size_t i = 0; i < sizeof(ops) / sizeof(ops[0]); i++) {
		if (!strcmp(words[0], ops[i].name) && count > ops[i].words) {
			inject(true);
			ops[i].run(words + 1);
			inject(false);
			return;
		}
	}
	say("bad command %s", words[0]);
}

static void *actor_main(void *argument)
{
	int actor = (int)(intptr_t)argument;
	FILE *commands = fdopen(pipes[actor][0], "r");
	static __thread char line[LINE];

	own_thread = actor % 2;
	while (commands && fgets(line, sizeof(line), commands)) {
		char *save = NULL;

		line[strcspn(line, "\n")] = 0;
		for (char *op = strtok_r(line, ";", &save); op; op = strtok_r(NULL, ";", &save)) {
			run_op(op);
			shared->steps++;
		}
		say("done %d", actor);
	}
	_exit(0);
}

static void process_main(int process, uid_t uid)
{
	pthread_t second;

	own_process = process;
	prctl(PR_SET_PDEATHSIG, SIGKILL);
	/* Directory notifications come as a signal. */
	signal(SIGUSR1, SIG_IGN);
	signal(SIGIO, SIG_IGN);
	for (int i = 0; i < SLOTS; i++)
		slots[i] = -1;
	for (int i = 0; i < ACTORS; i++) {
		if (pipes[i][1] >= 0)
			close(pipes[i][1]);
	}
	if (uid && (setgroups(0, NULL) || setresgid(uid, uid, uid) || setresuid(uid, uid, uid)))
		_exit(1);
	prctl(PR_SET_DUMPABLE, 1);
	if (pthread_create(&second, NULL, actor_main, (void *)(intptr_t)(2 * process + 1)))
		_exit(1);
	actor_main((void *)(intptr_t)(2 * process));
}

static void spawn(int process, uid_t uid)
{
	char text[16];
	pid_t pid;

	memset(shared->dnotify[process], 0, sizeof(shared->dnotify[process]));
	for (int i = 2 * process; i < 2 * process + 2; i++) {
		if (pipes[i][1] >= 0)
			close(pipes[i][1]);
		if (pipe2(pipes[i], O_CLOEXEC))
			exit(1);
	}
	/* The child shares the table: its 0 must not get there. */
	pid = fork();
	if (!pid)
		process_main(process, uid);
	shared->pid[process] = pid;
	snprintf(text, sizeof(text), "%d", pid);
	put(CGROUP "/cgroup.procs", text);
	close(pipes[2 * process][0]);
	close(pipes[2 * process + 1][0]);
}

static void reap(void)
{
	pid_t pid;

	while ((pid = waitpid(-1, NULL, WNOHANG)) > 0) {
		for (int i = 0; i < PROCESSES; i++) {
			if (shared->pid[i] == pid) {
				shared->pid[i] = 0;
				say("died %d", i);
			}
		}
	}
}

/*
 * The kind of a fanotify group by its flags: "fanotify", "asking" for remote events, or for them
 * "only".
 */
static const char *kind_of_group(int process, int fd)
{
	char path[64], line[512];
	const char *kind = "fanotify";
	unsigned int flags;
	FILE *info;

	snprintf(path, sizeof(path), "/proc/%d/fdinfo/%d", shared->pid[process], fd);
	info = fopen(path, "r");
	if (!info)
		return kind;
	while (fgets(line, sizeof(line), info)) {
		if (sscanf(line, "fanotify flags:%x", &flags) == 1 && flags & FAN_REPORT_REMOTE)
			kind = flags & FAN_REMOTE_ONLY ? "only" : "asking";
	}
	fclose(info);
	return kind;
}

/*
 * Calls `visit` with each inotify or fanotify descriptor of a process, or with -1 for one that has
 * none.
 */
static void visit_fds(int process, void (*visit)(int process, int fd, const char *kind))
{
	char path[64], target[256];
	DIR *directory;
	struct dirent *entry;

	snprintf(path, sizeof(path), "/proc/%d/fd", shared->pid[process]);
	directory = opendir(path);
	if (!directory)
		return;
	while ((entry = readdir(directory))) {
		ssize_t length = readlinkat(dirfd(directory), entry->d_name, target,
					    sizeof(target) - 1);
		int fd = atoi(entry->d_name);

		if (length <= 0)
			continue;
		target[length] = 0;
		if (!strcmp(target, "anon_inode:inotify"))
			visit(process, fd, "inotify");
		else if (!strcmp(target, "anon_inode:[fanotify]"))
			visit(process, fd, kind_of_group(process, fd));
	}
	closedir(directory);
}

static void report_fd(int process, int fd, const char *kind)
{
	char path[64], line[512];
	FILE *info;

	snprintf(path, sizeof(path), "/proc/%d/fdinfo/%d", shared->pid[process], fd);
	info = fopen(path, "r");
	if (!info)
		return;
	while (fgets(line, sizeof(line), info)) {
		unsigned int wd, mask, ignored, flags;
		unsigned long ino, sdev;

		if (sscanf(line, "inotify wd:%x ino:%lx sdev:%lx mask:%x", &wd, &ino, &sdev,
			   &mask) == 4)
			say("watch %d %d inotify %u %#lx %#lx %#x", process, fd, wd, ino, sdev,
			    mask);
		else if (sscanf(line, "fanotify ino:%lx sdev:%lx mflags:%x mask:%x ignored_mask:%x",
				&ino, &sdev, &flags, &mask, &ignored) == 5)
			say("watch %d %d %s 0 %#lx %#lx %#x", process, fd, kind, ino, sdev, mask);
	}
	fclose(info);
}

static void read_inotify(int process, int number, const char *data, ssize_t length)
{
	for (const char *at = data; at < data + length;) {
		const struct inotify_event *event = (const void *)at;

		say("event %d %d inotify %d %#x", process, number, event->wd, event->mask);
		at += sizeof(*event) + event->len;
	}
}

/* One line for each object that an event names: the one that it happened to and its directory. */
static void read_fanotify(int process, int number, const char *kind, const char *data,
			  ssize_t length)
{
	const struct fanotify_event_metadata *event = (const void *)data;

	for (; FAN_EVENT_OK(event, length); event = FAN_EVENT_NEXT(event, length)) {
		const char *at = (const char *)event + event->metadata_len;
		const char *end = (const char *)event + event->event_len;

		unsigned long long mask = event->mask;
		bool remote = mask & FAN_REMOTE;

		if (event->mask & FAN_Q_OVERFLOW)
			say("event %d %d %s 0 %#x", process, number, kind, FAN_Q_OVERFLOW);
		if (remote && (!strcmp(kind, "fanotify") || event->mask & FAN_Q_OVERFLOW))
			say("bad FAN_REMOTE in %#llx for a group of kind %s", mask, kind);
		if (!remote && !strcmp(kind, "only") && !(event->mask & FAN_Q_OVERFLOW))
			say("bad local event %#llx for a group of remote ones", mask);
		while (at < end) {
			const struct fanotify_event_info_fid *info = (const void *)at;
			const struct file_handle *handle = (const void *)info->handle;
			const uint32_t *words = (const void *)handle->f_handle;

			if (handle->handle_bytes >= 12)
				say("event %d %d %s %llu %#llx", process, number, kind,
				    (unsigned long long)words[0] << 32 | words[1],
				    (unsigned long long)event->mask);
			at += info->hdr.len;
		}
	}
}

static bool reading_aloud, anything;

static void drain_fd(int process, int number, const char *kind)
{
	static char data[1 << 16];
	int pidfd = syscall(SYS_pidfd_open, shared->pid[process], 0);
	int fd = pidfd < 0 ? -1 : syscall(SYS_pidfd_getfd, pidfd, number, 0);
	ssize_t length;

	while (fd >= 0 && (length = read(fd, data, sizeof(data))) > 0) {
		anything = true;
		if (!reading_aloud)
			continue;
		if (!strcmp(kind, "inotify"))
			read_inotify(process, number, data, length);
		else
			read_fanotify(process, number, kind, data, length);
	}
	if (fd >= 0)
		close(fd);
	if (pidfd >= 0)
		close(pidfd);
}

static void visit_all(void (*visit)(int process, int fd, const char *kind))
{
	for (int i = 0; i < PROCESSES; i++) {
		if (shared->pid[i] > 0)
			visit_fds(i, visit);
	}
}

static void hear(long quiet)
{
	long waited = 0;

	reading_aloud = true;
	while (waited < quiet) {
		anything = false;
		visit_all(drain_fd);
		if (anything) {
			waited = 0;
			continue;
		}
		usleep(20000);
		waited += 20;
	}
	reading_aloud = false;
}

static void report_dnotify(void)
{
	for (int i = 0; i < PROCESSES; i++) {
		for (int slot = 0; shared->pid[i] > 0 && slot < SLOTS; slot++) {
			const struct dnotify *watch = &shared->dnotify[i][slot];

			if (watch->mask)
				say("watch %d %d dnotify 0 %#lx %#lx %#x", i, slot, watch->ino,
				    watch->device, watch->mask);
		}
	}
}

static void command(char *line)
{
	char *save = NULL, *name = strtok_r(line, " ", &save), *first = strtok_r(NULL, " ", &save);

	if (!name)
		return;
	if (!strcmp(name, "spawn")) {
		spawn(number(first) % PROCESSES, number(strtok_r(NULL, " ", &save)));
	} else if (!strcmp(name, "do")) {
		int actor = number(first) % ACTORS;
		size_t length = strlen(save);

		save[length] = '\n';
		/* Whole lines only: what a dead process does not take is lost. */
		if (write(pipes[actor][1], save, length + 1) < 0)
			say("done %d", actor);
		return;
	} else if (!strcmp(name, "report")) {
		visit_all(report_fd);
		report_dnotify();
	} else if (!strcmp(name, "steps")) {
		say("steps %lu", shared->steps);
	} else if (!strcmp(name, "drain")) {
		visit_all(drain_fd);
	} else if (!strcmp(name, "heard")) {
		hear(number(first));
	} else if (!strcmp(name, "quit")) {
		exit(0);
	}
	say("ok %s", name);
}

int main(void)
{
	static char buffer[LINE];
	size_t filled = 0;

	shared = mmap(NULL, sizeof(*shared), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1,
		      0);
	if (shared == MAP_FAILED)
		return 1;
	for (int i = 0; i < ACTORS; i++)
		pipes[i][0] = pipes[i][1] = -1;
	signal(SIGPIPE, SIG_IGN);
	for (;;) {
		struct pollfd input = { .fd = 0, .events = POLLIN };
		ssize_t got;
		char *end;

		reap();
		if (poll(&input, 1, 50) <= 0)
			continue;
		got = read(0, buffer + filled, sizeof(buffer) - filled - 1);
		if (got <= 0)
			return 0;
		filled += got;
		while ((end = memchr(buffer, '\n', filled))) {
			size_t used = end + 1 - buffer;

			*end = 0;
			command(buffer);
			filled -= used;
			memmove(buffer, buffer + used, filled);
		}
	}
}
