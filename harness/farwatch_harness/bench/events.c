// SPDX-License-Identifier: Apache-2.0
/*
 * The inotify programs of the benchmark, which run in the guest. The first two print "ready" when
 * they have added their watches.
 *
 * bench_events latency FILE ACK COUNT
 *     For each of COUNT events on FILE, write the event's number to ACK. At the end, print a line
 *     "GAP WRITE" for each event, in ns: the time from the return of read(2) to the call of
 *     pwrite(2), and the duration of pwrite(2).
 * bench_events count DIRECTORY PREFIX COUNT
 *     Read IN_CREATE events named PREFIX000000.. in order, until COUNT were read, or at an overflow
 *     or a gap. Print "COUNT SECONDS LOST": the number of events, the time from the first event's
 *     arrival to the last one's, and 1 for an overflow or a gap, else 0.
 * bench_events watches DIRECTORY COUNT
 *     Call stat(2) for DIRECTORY/0.. and print "looked-up SECONDS". At SIGUSR1, watch all of them,
 *     or until a limit is reached, and print "watched SECONDS COUNT". At SIGTERM, close the inotify
 *     instance and print "closed SECONDS".
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/inotify.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

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

static void latency(const char *path, const char *ack_path, long count)
{
	int ack = must(open(ack_path, O_WRONLY), ack_path);
	int64_t *gaps = calloc(count, sizeof(*gaps)), *writes = calloc(count, sizeof(*writes));
	int fd = watch(path, IN_MODIFY);
	uint64_t seen = 0;

	if (!gaps || !writes)
		die("memory");
	ready();
	while ((long)seen < count) {
		int64_t arrived, called;
		ssize_t got = must(read(fd, buffer, sizeof(buffer)), "read");

		arrived = now_ns();
		for (char *at = buffer; at < buffer + got; seen++)
			at += sizeof(struct inotify_event) + ((struct inotify_event *)at)->len;
		called = now_ns();
		if (must(pwrite(ack, &seen, sizeof(seen), 0), ack_path) != sizeof(seen))
			die("short write");
		if ((long)seen <= count) {
			gaps[seen - 1] = called - arrived;
			writes[seen - 1] = now_ns() - called;
		}
	}
	for (long i = 0; i < count; i++)
		printf("%lld %lld\n", (long long)gaps[i], (long long)writes[i]);
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
			if ((event->mask & IN_Q_OVERFLOW) || !event->len || strcmp(event->name, name))
				lost = 1;
			else
				seen++;
			at += sizeof(*event) + event->len;
		}
	}
	printf("%ld %.9f %d\n", seen, (last - first) / 1e9, lost);
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
	if (argc == 5 && !strcmp(argv[1], "latency"))
		latency(argv[2], argv[3], atol(argv[4]));
	else if (argc == 5 && !strcmp(argv[1], "count"))
		count_events(argv[2], argv[3], atol(argv[4]));
	else if (argc == 4 && !strcmp(argv[1], "watches"))
		watches(argv[2], atol(argv[3]));
	else {
		fprintf(stderr, "usage: bench_events latency|count|watches ..., see the source\n");
		return 2;
	}
	return 0;
}
