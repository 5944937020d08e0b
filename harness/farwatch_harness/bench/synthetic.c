// SPDX-License-Identifier: Apache-2.0
/*
 * The driver's side of a virtio-fs device's queues, for the benchmark without a guest. It repeats
 * prepared requests, `depth` of them concurrently, and counts them. vhost_frontend.py lays out the
 * memory, and has the same structures.
 *
 * A slot stands for one process of a guest: it performs its steps in order, one after the other,
 * and starts again. No two slots share steps, so everything but the bytes that depend on replies is
 * written beforehand.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <poll.h>
#include <stdint.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#define RINGS 2
#define MAX_DEPTH 64
/* The longest wait for a reply, in milliseconds. */
#define REPLY_LIMIT 10000

#define DESC_INDIRECT 4

struct descriptor {
	uint64_t addr;
	uint32_t length;
	uint16_t flags, next;
};

struct available {
	uint16_t flags, index, heads[];
};

struct used {
	uint16_t flags, index;
	struct {
		uint32_t head, written;
	} elements[];
};

struct in_header {
	uint32_t length, opcode;
	uint64_t unique;
};

struct out_header {
	uint32_t length;
	int32_t error;
	uint64_t unique;
};

/* All positions are offsets in the memory, in bytes. */
struct ring {
	uint32_t size, descriptors, available, used;
	int32_t kick;
};

/*
 * One request. `table` is the offset of its `descriptors`. `reply` is the offset of the reply's
 * fuse_out_header; 0 if there is no reply.
 */
struct step {
	uint32_t ring, table, descriptors, request, reply;
	int32_t error;
	uint32_t first_copy, copies;
};

/* Eight bytes of a reply that are copied into a later request. */
struct copy {
	uint32_t from, to;
};

/* `failed` is an enum failure; `step` is the step that failed, `error` the errno of its reply. */
struct result {
	uint64_t runs, requests, wall_ns, cpu_ns, kicks, interrupts;
	int32_t failed, step, error;
};

enum failure {
	ALL_WELL,
	WRONG_ERROR,
	WRONG_REPLY,
	NO_REPLY,
	CANNOT_WAIT,
};

struct queue {
	struct ring ring;
	struct descriptor *descriptors;
	volatile struct available *available;
	volatile struct used *used;
	volatile uint16_t *used_event, *avail_event;
	uint16_t next_available, next_used;
};

static uint64_t now(clockid_t clock)
{
	struct timespec t;

	clock_gettime(clock, &t);
	return t.tv_sec * 1000000000ull + t.tv_nsec;
}

static void submit(char *memory, uint64_t base, struct queue *queue, const struct step *step,
		   uint16_t slot, uint64_t unique, struct result *result)
{
	struct descriptor *descriptor = &queue->descriptors[slot];
	uint16_t old = queue->next_available;
	uint64_t one = 1;

	((struct in_header *)(memory + step->request))->unique = unique;
	descriptor->addr = base + step->table;
	descriptor->length = step->descriptors * sizeof(*descriptor);
	descriptor->flags = DESC_INDIRECT;
	queue->available->heads[old % queue->ring.size] = slot;
	queue->next_available = old + 1;
	__atomic_thread_fence(__ATOMIC_RELEASE);
	queue->available->index = queue->next_available;
	__atomic_thread_fence(__ATOMIC_SEQ_CST);
	if (*queue->avail_event == old) {
		result->kicks++;
		if (write(queue->ring.kick, &one, sizeof(one)) != sizeof(one))
			result->failed = CANNOT_WAIT;
	}
	result->requests++;
}

/* Check a reply and copy from it what later requests need. */
static void accept_reply(char *memory, const struct step *step, const struct copy *copies,
			 uint32_t written, uint64_t unique, struct result *result)
{
	const struct out_header *reply = (void *)(memory + step->reply);
	uint32_t n;

	if (!step->reply) {
		if (written)
			result->failed = WRONG_REPLY;
		return;
	}
	if (written < sizeof(*reply) || reply->length != written || reply->unique != unique) {
		result->failed = WRONG_REPLY;
	} else if (reply->error != step->error) {
		result->failed = WRONG_ERROR;
		result->error = -reply->error;
	}
	for (n = step->first_copy; n < step->first_copy + step->copies; n++)
		memcpy(memory + copies[n].to, memory + copies[n].from, 8);
}

static int anything_used(struct queue *queues)
{
	int ring, found = 0;

	for (ring = 0; ring < RINGS; ring++)
		*queues[ring].used_event = queues[ring].next_used;
	__atomic_thread_fence(__ATOMIC_SEQ_CST);
	for (ring = 0; ring < RINGS; ring++)
		found |= queues[ring].used->index != queues[ring].next_used;
	return found;
}

static void wait_for_interrupt(int call, struct result *result)
{
	struct pollfd wanted = { .fd = call, .events = POLLIN };
	uint64_t count;

	if (poll(&wanted, 1, REPLY_LIMIT) != 1)
		result->failed = NO_REPLY;
	else if (read(call, &count, sizeof(count)) == sizeof(count))
		result->interrupts++;
	else if (errno != EAGAIN)
		result->failed = CANNOT_WAIT;
}

/*
 * Drive the queues until `ns` are over and all slots have performed their last step, or until the
 * first failure. `memory` has the guest's address `base`. Slot N performs steps_per_slot steps from
 * steps[N * steps_per_slot] on. `unique` continues from call to call.
 */
void drive(char *memory, uint64_t base, const struct ring *rings, int call,
	   const struct step *steps, uint32_t steps_per_slot, uint32_t depth,
	   const struct copy *copies, uint64_t *unique, uint64_t ns, struct result *result)
{
	static struct queue queues[RINGS];
	uint64_t began = now(CLOCK_MONOTONIC_RAW), cpu = now(CLOCK_THREAD_CPUTIME_ID);
	uint64_t uniques[MAX_DEPTH];
	uint32_t at[MAX_DEPTH] = { 0 }, running, slot;
	int ring;

	memset(result, 0, sizeof(*result));
	for (ring = 0; ring < RINGS; ring++) {
		struct queue *queue = &queues[ring];

		queue->ring = rings[ring];
		queue->descriptors = (void *)(memory + rings[ring].descriptors);
		queue->available = (void *)(memory + rings[ring].available);
		queue->used = (void *)(memory + rings[ring].used);
		queue->used_event = &queue->available->heads[rings[ring].size];
		queue->avail_event = (void *)&queue->used->elements[rings[ring].size];
		queue->next_available = queue->available->index;
		queue->next_used = queue->used->index;
	}
	for (slot = 0; slot < depth; slot++) {
		const struct step *first = &steps[slot * steps_per_slot];

		uniques[slot] = *unique += 2;
		submit(memory, base, &queues[first->ring], first, slot, uniques[slot], result);
	}
	for (running = depth; running && !result->failed;) {
		for (ring = 0; ring < RINGS && !result->failed; ring++) {
			struct queue *queue = &queues[ring];

			while (queue->used->index != queue->next_used && !result->failed) {
				const struct step *step;
				uint32_t index = queue->next_used++ % queue->ring.size;

				__atomic_thread_fence(__ATOMIC_ACQUIRE);
				slot = queue->used->elements[index].head;
				if (slot >= depth) {
					result->failed = WRONG_REPLY;
					break;
				}
				step = &steps[slot * steps_per_slot + at[slot]];
				accept_reply(memory, step, copies,
					     queue->used->elements[index].written, uniques[slot],
					     result);
				result->step = at[slot];
				if (++at[slot] == steps_per_slot) {
					at[slot] = 0;
					result->runs++;
					if (now(CLOCK_MONOTONIC_RAW) - began >= ns) {
						running--;
						continue;
					}
				}
				step = &steps[slot * steps_per_slot + at[slot]];
				uniques[slot] = *unique += 2;
				submit(memory, base, &queues[step->ring], step, slot, uniques[slot],
				       result);
			}
		}
		if (running && !result->failed && !anything_used(queues))
			wait_for_interrupt(call, result);
	}
	result->wall_ns = now(CLOCK_MONOTONIC_RAW) - began;
	result->cpu_ns = now(CLOCK_THREAD_CPUTIME_ID) - cpu;
}
