// SPDX-License-Identifier: Apache-2.0
/*
 * Repeats one file operation for a time and prints how often it ran: "COUNT SECONDS". It runs in
 * the guest, and is in C so that the share is measured and not an interpreter.
 *
 * Usage: bench_operations DIRECTORY SECONDS OPERATION
 * DIRECTORY has "data" (a file of at least 1 MiB), "name" (any file) and "list" (a directory).
 */
#define _GNU_SOURCE
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#define SMALL 4096
#define LARGE (1 << 20)

static int data_fd;
static char *buffer;

static void die(const char *what)
{
	fprintf(stderr, "bench_operations: %s: %s\n", what, strerror(errno));
	exit(1);
}

static void must(long result, const char *what)
{
	if (result < 0)
		die(what);
}

static double now(void)
{
	struct timespec t;

	clock_gettime(CLOCK_MONOTONIC_RAW, &t);
	return t.tv_sec + t.tv_nsec / 1e9;
}

static void do_getattr(void)
{
	struct stat st;

	must(fstat(data_fd, &st), "fstat");
}

static void do_open_close(void)
{
	int fd = open("data", O_RDONLY);

	must(fd, "open");
	must(close(fd), "close");
}

static void do_lookup_missing(void)
{
	struct stat st;

	if (!stat("missing", &st) || errno != ENOENT)
		die("stat of a missing file");
}

static void do_create_unlink(void)
{
	int fd = open("created", O_RDWR | O_CREAT | O_EXCL, 0600);

	must(fd, "create");
	must(close(fd), "close");
	must(unlink("created"), "unlink");
}

static void do_mkdir_rmdir(void)
{
	must(mkdir("made", 0700), "mkdir");
	must(rmdir("made"), "rmdir");
}

static void do_rename(void)
{
	static int turn;
	const char *names[] = { "name", "name2" };

	must(rename(names[turn], names[!turn]), "rename");
	turn = !turn;
}

static void do_read(size_t size)
{
	if (pread(data_fd, buffer, size, 0) != (ssize_t)size)
		die("read");
}

static void do_write(size_t size)
{
	if (pwrite(data_fd, buffer, size, 0) != (ssize_t)size)
		die("write");
}

static void do_read_small(void)
{
	do_read(SMALL);
}

static void do_read_large(void)
{
	do_read(LARGE);
}

static void do_write_small(void)
{
	do_write(SMALL);
}

static void do_write_large(void)
{
	do_write(LARGE);
}

/* Read what `ls -l` reads: all names of the directory, and the attributes of each. */
static void do_list(void)
{
	DIR *dir = opendir("list");
	struct dirent *entry;
	struct stat st;

	if (!dir)
		die("opendir");
	errno = 0;
	while ((entry = readdir(dir)))
		must(fstatat(dirfd(dir), entry->d_name, &st, AT_SYMLINK_NOFOLLOW), entry->d_name);
	if (errno)
		die("readdir");
	must(closedir(dir), "closedir");
}

static const struct {
	const char *name;
	void (*run)(void);
	/* Only an even number of runs leaves the directory unchanged. */
	int pairs;
} operations[] = {
	{ "getattr", do_getattr, 0 },
	{ "open+close", do_open_close, 0 },
	{ "lookup-missing", do_lookup_missing, 0 },
	{ "create+unlink", do_create_unlink, 0 },
	{ "mkdir+rmdir", do_mkdir_rmdir, 0 },
	{ "rename", do_rename, 1 },
	{ "read-4k", do_read_small, 0 },
	{ "write-4k", do_write_small, 0 },
	{ "read-1m", do_read_large, 0 },
	{ "write-1m", do_write_large, 0 },
	{ "list", do_list, 0 },
};

int main(int argc, char **argv)
{
	double length, start, end;
	long count = 0;
	size_t i;

	if (argc != 4) {
		fprintf(stderr, "usage: bench_operations DIRECTORY SECONDS OPERATION\n");
		return 2;
	}
	length = atof(argv[2]);
	must(chdir(argv[1]), argv[1]);
	data_fd = open("data", O_RDWR | O_DIRECT);
	must(data_fd, "data");
	if (posix_memalign((void **)&buffer, SMALL, LARGE))
		die("memory");
	memset(buffer, 'x', LARGE);
	for (i = 0; i < sizeof(operations) / sizeof(*operations); i++)
		if (!strcmp(operations[i].name, argv[3]))
			break;
	if (i == sizeof(operations) / sizeof(*operations)) {
		fprintf(stderr, "bench_operations: there is no operation %s\n", argv[3]);
		return 2;
	}
	operations[i].run();
	count = 1;
	start = now();
	do {
		operations[i].run();
		count++;
		end = now();
	} while (end - start < length || (operations[i].pairs && count % 2));
	printf("%ld %.9f\n", count - 1, end - start);
	return 0;
}
