// SPDX-License-Identifier: Apache-2.0
/*
 * The inotify programs of the benchmark. They run in the guest and, to compare, on the host. The
 * readers print "ready" when they have added their watches.
 *
 * PAGE is memory that host and guest share: a file on the host, the memory of a PCI device in the
 * guest. Times are in ticks of the time stamp counter. The guest's is the host's plus a constant.
 * Each side shows the other its counter: no value is seen before it was read, which bounds the
 * constant from both sides.
 *
 * bench_events read FILE COUNT PAGE
 *     Read COUNT events of FILE. Print for each the ticks at the return of read(2), then
 *     "bound TICKS": reader's counter - writer's counter <= TICKS.
 * bench_events write FILE COUNT PAGE
 *     Write to FILE COUNT times, each time when the event of the previous write was read. Print for
 *     each the ticks at the call of write(2), then "bound TICKS": reader's counter - writer's
 *     counter >= TICKS; then "rate TICKS": ticks per second.
 * bench_events getattr FILE COUNT
 *     Ask COUNT times for FILE's attributes, uncached. Print for each how many ticks it took.
 * bench_events count DIRECTORY PREFIX COUNT
 *     Read IN_CREATE events named PREFIX000000.. in order, until COUNT were read, or at an overflow
 *     or a gap. Print "COUNT SECONDS LOST": the number of events, the time from the first event's
 *     arrival to the last one's, and 1 for an overflow or a gap, else 0.
 * bench_events tree DIRECTORY END
 *     Watch all directories from DIRECTORY on, also those that are made later, as inotifywait -r
 *     does, until the file END appears in DIRECTORY. Then print "end EVENTS OVERFLOWS".
 * bench_events watches DIRECTORY COUNT
 *     Call stat(2) for DIRECTORY/0.. and print "looked-up SECONDS". At SIGUSR1, watch all of them,
 *     or until a limit is reached, and print "watched SECONDS COUNT". At SIGTERM, close the inotify
 *     instance and print "closed SECONDS".
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <ftw.h>
#include <limits.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/inotify.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>
#include <x86intrin.h>

#define PAGE_SIZE 4096
/* For so long each side shows the other its counter, at the start and at the end. */
#define COMPARE_NS 200000000LL
/* How often the writer looks for the reader's progress, and for how long. */
#define LOOK_NS 50000
#define LOOKS 200000

static char buffer[1 << 16] __attribute__((aligned(8)));

static void die(const char *what)
{
	fprintf(stderr, "bench_events: %s: %s\n", what, strerror(errno));
	exit(1);
}

static long must(long result, const char *what)
{
	if (result < 0)
		die(what);
	return result;
}

static int64_t now_ns(void)
{
	struct timespec t;

	clock_gettime(CLOCK_MONOTONIC_RAW, &t);
	return t.tv_sec * 1000000000LL + t.tv_nsec;
}

static void print_seconds(const char *what, int64_t since)
{
	printf("%s %.9f\n", what, (now_ns() - since) / 1e9);
	fflush(stdout);
}

static int watch(const char *path, uint32_t mask)
{
	int fd = must(inotify_init1(IN_CLOEXEC), "inotify_init1");

	must(inotify_add_watch(fd, path, mask), path);
	return fd;
}

static void ready(void)
{
	printf("ready\n");
	fflush(stdout);
}

static int64_t ticks(void)
{
	_mm_lfence();
	return __rdtsc();
}

/* What the sides show each other. `stage`: the next comparison of counters may begin. */
struct page {
	volatile int64_t counter[2], stage[2];
	volatile uint64_t seen;
};

enum side { WRITER, READER };

static struct page *map_page(const char *path)
{
	int fd = must(open(path, O_RDWR | O_SYNC), path);
	void *page = mmap(NULL, PAGE_SIZE, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);

	if (page == MAP_FAILED)
		die(path);
	must(close(fd), path);
	return page;
}

static void pause_for(long ns)
{
	struct timespec t = { .tv_nsec = ns };

	nanosleep(&t, NULL);
}

/* Return the least of the own counter less the other side's, as far as it was seen. */
static int64_t compare_counters(struct page *page, enum side own, int64_t stage)
{
	enum side other = own == WRITER ? READER : WRITER;
	int64_t least = INT64_MAX, end;
	int looks = LOOKS;

	page->stage[own] = stage;
	while (page->stage[other] < stage) {
		if (!looks--) {
			errno = ETIMEDOUT;
			die("the other side");
		}
		pause_for(LOOK_NS);
	}
	for (end = now_ns() + COMPARE_NS; now_ns() < end;)
		for (int n = 0; n < 100; n++) {
			int64_t seen, less;

			page->counter[own] = ticks();
			seen = page->counter[other];
			less = ticks() - seen;
			if (seen && less < least)
				least = less;
		}
	return least;
}

static void print_all(const int64_t *values, long count)
{
	for (long i = 0; i < count; i++)
		printf("%lld\n", (long long)values[i]);
}

static int64_t *numbers(long count)
{
	int64_t *values = calloc(count, sizeof(*values));

	if (!values)
		die("memory");
	return values;
}

static int64_t lesser(int64_t one, int64_t other)
{
	return one < other ? one : other;
}

static void read_events(const char *path, long count, const char *page_path)
{
	struct page *page = map_page(page_path);
	int64_t *arrived = numbers(count), bound;
	int fd = watch(path, IN_MODIFY);
	long seen = 0;

	ready();
	bound = compare_counters(page, READER, 1);
	while (seen < count) {
		ssize_t got = must(read(fd, buffer, sizeof(buffer)), "read");
		int64_t time = ticks();

		for (char *at = buffer; at < buffer + got; seen++) {
			if (seen < count)
				arrived[seen] = time;
			at += sizeof(struct inotify_event) + ((struct inotify_event *)at)->len;
		}
		page->seen = seen;
	}
	bound = lesser(bound, compare_counters(page, READER, 2));
	print_all(arrived, count);
	printf("bound %lld\n", (long long)bound);
	fflush(stdout);
}

static void write_events(const char *path, long count, const char *page_path)
{
	struct page *page = map_page(page_path);
	int64_t *called = numbers(count), bound, began_ns, began;
	int fd = must(open(path, O_WRONLY), path);

	bound = compare_counters(page, WRITER, 1);
	began_ns = now_ns();
	began = ticks();
	for (long n = 0; n < count; n++) {
		int looks = LOOKS;

		called[n] = ticks();
		if (must(write(fd, "x", 1), path) != 1)
			die("short write");
		while ((long)page->seen <= n) {
			if (!looks--) {
				errno = ETIMEDOUT;
				die("an event");
			}
			pause_for(LOOK_NS);
		}
		if ((long)page->seen != n + 1) {
			errno = EPROTO;
			die("more events than writes");
		}
	}
	bound = lesser(bound, compare_counters(page, WRITER, 2));
	print_all(called, count);
	printf("bound %lld\n", (long long)-bound);
	printf("rate %.0f\n", (ticks() - began) * 1e9 / (now_ns() - began_ns));
	fflush(stdout);
}

static void getattr(const char *path, long count)
{
	int64_t *taken = numbers(count);
	int fd = must(open(path, O_RDONLY), path);
	struct statx attributes;

	for (long n = 0; n < count; n++) {
		int64_t began = ticks();

		must(statx(fd, "", AT_EMPTY_PATH | AT_STATX_FORCE_SYNC, STATX_BASIC_STATS,
			   &attributes), "statx");
		taken[n] = ticks() - began;
	}
	print_all(taken, count);
	fflush(stdout);
}

static void count_events(const char *directory, const char *prefix, long count)
{
	int fd = watch(directory, IN_CREATE);
	int64_t first = 0, last = 0;
	long seen = 0;
	int lost = 0;
	char name[NAME_MAX + 1];

	ready();
	while (seen < count && !lost) {
		ssize_t got = must(read(fd, buffer, sizeof(buffer)), "read");

		last = now_ns();
		if (!first)
			first = last;
		for (char *at = buffer; at < buffer + got && !lost;) {
			struct inotify_event *event = (struct inotify_event *)at;

			snprintf(name, sizeof(name), "%s%06ld", prefix, seen);
			if ((event->mask & IN_Q_OVERFLOW) || !event->len ||
			    strcmp(event->name, name))
				lost = 1;
			else
				seen++;
			at += sizeof(*event) + event->len;
		}
	}
	printf("%ld %.9f %d\n", seen, (last - first) / 1e9, lost);
	fflush(stdout);
}

#define TREE_MASK (IN_CREATE | IN_DELETE | IN_MOVE | IN_MODIFY | IN_CLOSE_WRITE | IN_ATTRIB)
#define MOST_WATCHES 100000

static int tree_fd;
/* By watch descriptor. */
static char *directories[MOST_WATCHES];

static int watch_directory(const char *path, const struct stat *st, int type, struct FTW *ftw)
{
	int wd;

	(void)st;
	(void)ftw;
	if (type != FTW_D)
		return 0;
	wd = inotify_add_watch(tree_fd, path, TREE_MASK | IN_ONLYDIR);
	if (wd < 0) {
		/* It may have been removed again. */
		if (errno != ENOENT && errno != ENOTDIR && errno != ESTALE)
			die(path);
		return 0;
	}
	if (wd >= MOST_WATCHES) {
		errno = ENOSPC;
		die(path);
	}
	free(directories[wd]);
	directories[wd] = strdup(path);
	return 0;
}

static void tree(const char *directory, const char *end)
{
	long events = 0, overflows = 0;
	int ended = 0;
	char path[PATH_MAX];

	tree_fd = must(inotify_init1(IN_CLOEXEC), "inotify_init1");
	must(nftw(directory, watch_directory, 20, FTW_PHYS), directory);
	ready();
	while (!ended) {
		ssize_t got = must(read(tree_fd, buffer, sizeof(buffer)), "read");

		for (char *at = buffer; at < buffer + got;) {
			struct inotify_event *event = (struct inotify_event *)at;
			const char *where = event->wd > 0 ? directories[event->wd] : NULL;

			at += sizeof(*event) + event->len;
			if (event->mask & IN_Q_OVERFLOW) {
				overflows++;
				/* The end may be among what was lost. */
				snprintf(path, sizeof(path), "%s/%s", directory, end);
				ended = !access(path, F_OK);
				continue;
			}
			events++;
			if (!where || !event->len)
				continue;
			if (!strcmp(where, directory) && !strcmp(event->name, end))
				ended = 1;
			if (event->mask & IN_ISDIR && event->mask & (IN_CREATE | IN_MOVED_TO)) {
				snprintf(path, sizeof(path), "%s/%s", where, event->name);
				nftw(path, watch_directory, 20, FTW_PHYS);
			}
		}
	}
	printf("end %ld %ld\n", events, overflows);
	fflush(stdout);
}

static void await(const sigset_t *set, int wanted)
{
	int signum;

	do
		must(sigwait(set, &signum), "sigwait");
	while (signum != wanted);
}

static void watches(const char *directory, long count)
{
	sigset_t set;
	int fd;
	char name[32];
	struct stat st;
	int64_t start;
	long watched;

	sigemptyset(&set);
	sigaddset(&set, SIGTERM);
	sigaddset(&set, SIGUSR1);
	must(sigprocmask(SIG_BLOCK, &set, NULL), "sigprocmask");
	must(chdir(directory), directory);
	fd = must(inotify_init1(IN_CLOEXEC), "inotify_init1");
	start = now_ns();
	for (long i = 0; i < count; i++) {
		snprintf(name, sizeof(name), "%ld", i);
		must(stat(name, &st), name);
	}
	print_seconds("looked-up", start);
	await(&set, SIGUSR1);
	start = now_ns();
	for (watched = 0; watched < count; watched++) {
		snprintf(name, sizeof(name), "%ld", watched);
		if (inotify_add_watch(fd, name, IN_MODIFY | IN_ATTRIB) < 0) {
			/* ENFILE: the daemon has no descriptor left for the lookup. */
			if (errno != ENOSPC && errno != ENFILE)
				die(name);
			break;
		}
	}
	printf("watched %.9f %ld\n", (now_ns() - start) / 1e9, watched);
	fflush(stdout);
	await(&set, SIGTERM);
	start = now_ns();
	must(close(fd), "close");
	print_seconds("closed", start);
}

int main(int argc, char **argv)
{
	if (argc == 5 && !strcmp(argv[1], "read"))
		read_events(argv[2], atol(argv[3]), argv[4]);
	else if (argc == 5 && !strcmp(argv[1], "write"))
		write_events(argv[2], atol(argv[3]), argv[4]);
	else if (argc == 4 && !strcmp(argv[1], "getattr"))
		getattr(argv[2], atol(argv[3]));
	else if (argc == 5 && !strcmp(argv[1], "count"))
		count_events(argv[2], argv[3], atol(argv[4]));
	else if (argc == 4 && !strcmp(argv[1], "tree"))
		tree(argv[2], argv[3]);
	else if (argc == 4 && !strcmp(argv[1], "watches"))
		watches(argv[2], atol(argv[3]));
	else {
		fprintf(stderr, "usage: bench_events read|write|getattr|count|tree|watches ...,"
				" see the source\n");
		return 2;
	}
	return 0;
}
