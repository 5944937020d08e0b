// SPDX-License-Identifier: Apache-2.0
/* Chains of the common form: where their memory is, and copies of it. */
#include "native.h"

/* Return guest memory that one region holds; NULL if none does. */
static uint8_t *find_memory(Ring *ring, uint64_t addr, uint64_t size)
{
	struct region *region = ring->last_region, *end = ring->regions + ring->region_count;
	for (Py_ssize_t i = -1; i < ring->region_count; region = &ring->regions[++i]) {
		if (region < end && addr >= region->start && addr - region->start < region->size &&
		    size <= region->size - (addr - region->start)) {
			ring->last_region = region;
			return region->base + (addr - region->start);
		}
	}
	return NULL;
}

/*
 * Find the memory of the chain that begins with a descriptor. False: the chain is wrong or unusual;
 * chains.py knows which.
 */
bool find_chain(Ring *ring, uint16_t head, struct chain *chain)
{
	const uint16_t known = VRING_DESC_F_NEXT | VRING_DESC_F_WRITE;
	uint32_t count = ring->size, left = ring->size, index = head;
	int used = 0, first = 0;
	uint8_t *table = ring->descriptors;
	bool indirect = false;
	struct vring_desc descriptor;
	uint64_t total = 0;
	chain->writable = NULL;
	do {
		if (index >= count || !left--)
			return false;
		copy_once(&descriptor, table + sizeof(descriptor) * index, sizeof(descriptor));
		uint8_t *memory = find_memory(ring, descriptor.addr, descriptor.len);
		if (!memory || !descriptor.len)
			return false;
		if (descriptor.flags == VRING_DESC_F_INDIRECT) {
			if (indirect || total || !ring->indirect || descriptor.len % 16 ||
			    descriptor.len > 16 * MAX_INDIRECT)
				return false;
			indirect = true;
			table = memory;
			count = left = descriptor.len / 16;
			descriptor.flags = VRING_DESC_F_NEXT;
			index = 0;
			continue;
		}
		if (descriptor.flags & ~known)
			return false;
		if (descriptor.flags & VRING_DESC_F_WRITE && !chain->writable) {
			first = used;
			chain->writable = chain->slices + used;
			chain->readable_size = total;
		}
		if (chain->writable && !(descriptor.flags & VRING_DESC_F_WRITE))
			return false;
		total += descriptor.len;
		struct iovec *last = chain->slices + (used ? used - 1 : 0);
		if (used > first && (uint8_t *)last->iov_base + last->iov_len == memory)
			last->iov_len += descriptor.len;
		else if (used < MOST_SLICES)
			chain->slices[used++] = (struct iovec){memory, descriptor.len};
		else
			return false;
		index = descriptor.next;
	} while (descriptor.flags & VRING_DESC_F_NEXT);
	/* Each request that is plain has a reply. */
	if (!chain->writable || total >= MAX_CHAIN_BYTES)
		return false;
	chain->writable_size = total - chain->readable_size;
	return true;
}

/* Return how many slices are `size` > 0 bytes of others from `offset` on, which are there. */
int cut_slices(const struct iovec *slices, uint64_t offset, uint64_t size, struct iovec *part)
{
	int count = 0;
	while (offset >= slices->iov_len)
		offset -= (slices++)->iov_len;
	while (size) {
		uint64_t step = slices->iov_len - offset;
		if (step > size)
			step = size;
		part[count++] = (struct iovec){(uint8_t *)slices->iov_base + offset, (size_t)step};
		size -= step;
		offset = 0;
		slices++;
	}
	return count;
}

/* Copy `size` bytes to or from slices from `offset` on, which are there. */
void copy_slices(const struct iovec *slices, uint64_t offset, void *data, size_t size, bool to)
{
	while (offset >= slices->iov_len)
		offset -= (slices++)->iov_len;
	while (size) {
		void *memory = (uint8_t *)slices->iov_base + offset;
		size_t step = slices->iov_len - (size_t)offset;
		if (step > size)
			step = size;
		copy_once(to ? memory : data, to ? data : memory, step);
		data = (uint8_t *)data + step;
		size -= step;
		offset = 0;
		slices++;
	}
}
