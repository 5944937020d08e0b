// SPDX-License-Identifier: Apache-2.0
/*
 * Adds an inotify watch by the system call of 32-bit programs, and prints one
 * letter for each event: watch_by_int80 PATH
 */
#define _GNU_SOURCE
#include <stdio.h>
#include <string.h>
#include <sys/inotify.h>
#include <sys/mman.h>
#include <unistd.h>

/* The number of inotify_add_watch(2) for 32-bit programs on x86 */
#define IA32_INOTIFY_ADD_WATCH 292

static long ia32_add_watch(long fd, const char *path, long mask)
{
	long result;

	asm volatile("int $0x80"
		     : "=a"(result)
		     : "a"(IA32_INOTIFY_ADD_WATCH), "b"(fd), "c"(path), "d"(mask)
		     : "memory", "r8", "r9", "r10", "r11");
	return result;
}

int main(int argc, char **argv)
{
	/* An address of 32 bits */
	char *path = mmap(NULL, 4096, PROT_READ | PROT_WRITE,
			  MAP_PRIVATE | MAP_ANONYMOUS | MAP_32BIT, -1, 0);
	char buffer[4096];
	int fd = inotify_init();
	long wd;

	if (argc != 2 || path == MAP_FAILED || fd < 0 || strlen(argv[1]) > 4095)
		return 2;
	strcpy(path, argv[1]);
	wd = ia32_add_watch(fd, path, IN_CREATE);
	printf("watch %ld\n", wd);
	fflush(stdout);
	if (wd < 0)
		return 1;
	while (read(fd, buffer, sizeof(buffer)) > 0) {
		printf("event %s\n", ((struct inotify_event *)buffer)->name);
		fflush(stdout);
	}
	return 0;
}
