/* SPDX-License-Identifier: MIT */
/*
 * wire.c - frames of protocol.x: encode, delimit, decode, and a receive buffer.
 *
 * A frame is `u32 total, u32 xdr, rf_msg, payload` (see protocol.x).  Nothing here trusts the other
 * end: the two lengths are checked before a byte is waited for, a frame that can never become one
 * is refused at once, and the receive buffer grows to one frame and no further.
 *
 * Locks: none.  An object belongs to one thread.
 */
#include <refault/wire.h>

#include <endian.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define HEADER 8u  /* both length words */
#define XDR_MIN 8u /* xid and type: no rf_msg is shorter */
#define RX_MIN (64u * 1024)
#define RX_IDLE 64u /* so many reads that needed no big buffer, and it goes back to RX_MIN */

static uint32_t get32(const unsigned char *p)
{
	uint32_t v;

	memcpy(&v, p, sizeof(v));
	return be32toh(v);
}

static void put32(unsigned char *p, uint32_t v)
{
	v = htobe32(v);
	memcpy(p, &v, sizeof(v));
}

ssize_t rf_wire_encode(void *buf, size_t cap, struct rf_msg *msg, size_t payload_len)
{
	unsigned char *p = buf;
	size_t used;
	bool_t ok;
	XDR xdr;

	if (cap > RF_MAX_FRAME)
		cap = RF_MAX_FRAME;
	if (cap < HEADER + XDR_MIN)
		return -EMSGSIZE;
	xdrmem_create(&xdr, (char *)p + HEADER, (u_int)(cap - HEADER), XDR_ENCODE);
	ok = xdr_rf_msg(&xdr, msg);
	used = xdr_getpos(&xdr);
	xdr_destroy(&xdr);
	if (!ok || payload_len > RF_MAX_FRAME - 4 - used)
		return -EMSGSIZE;
	put32(p, (uint32_t)(4 + used + payload_len));
	put32(p + 4, (uint32_t)used);
	return (ssize_t)(HEADER + used);
}

ssize_t rf_wire_frame(const void *buf, size_t n, size_t *need)
{
	const unsigned char *p = buf;
	uint32_t total, xdr;

	if (need)
		*need = HEADER;
	if (n < 4)
		return 0;
	total = get32(p);
	if (total < 4 + XDR_MIN || total > RF_MAX_FRAME)
		return -EPROTO;
	if (n < HEADER)
		return 0;
	xdr = get32(p + 4);
	if (xdr < XDR_MIN || xdr % 4 || xdr > total - 4)
		return -EPROTO;
	if (need)
		*need = 4 + (size_t)total;
	return n < 4 + (size_t)total ? 0 : 4 + (ssize_t)total;
}

int rf_wire_decode(void *buf, size_t len, struct rf_msg *msg, void **payload, size_t *payload_len)
{
	unsigned char *p = buf;
	uint32_t used;
	bool_t ok;
	XDR xdr;

	memset(msg, 0, sizeof(*msg));
	if (rf_wire_frame(buf, len, NULL) != (ssize_t)len)
		return -EPROTO;
	used = get32(p + 4);
	xdrmem_create(&xdr, (char *)p + HEADER, used, XDR_DECODE);
	ok = xdr_rf_msg(&xdr, msg) && xdr_getpos(&xdr) == used;
	xdr_destroy(&xdr);
	if (!ok) {
		rf_wire_free(msg);
		return -EPROTO;
	}
	*payload = p + HEADER + used;
	*payload_len = len - HEADER - used;
	return 0;
}

void rf_wire_free(struct rf_msg *msg)
{
	xdr_free((xdrproc_t)xdr_rf_msg, (char *)msg);
	memset(msg, 0, sizeof(*msg));
}

void rf_rx_init(struct rf_rx *rx)
{
	memset(rx, 0, sizeof(*rx));
}

void rf_rx_free(struct rf_rx *rx)
{
	free(rx->buf);
	memset(rx, 0, sizeof(*rx));
}

/* A buffer of cap bytes with what is unread at its start. */
static int rx_resize(struct rf_rx *rx, size_t cap)
{
	size_t n = rx->end - rx->start;
	unsigned char *buf = malloc(cap);

	if (!buf)
		return -ENOMEM;
	if (n)
		memcpy(buf, rx->buf + rx->start, n);
	free(rx->buf);
	rx->buf = buf;
	rx->cap = cap;
	rx->start = 0;
	rx->end = n;
	return 0;
}

/* Room for the rest of the frame that has begun; little for little, so that idle peers are cheap.
 */
static int rx_room(struct rf_rx *rx)
{
	size_t have = rx->end - rx->start, want = RX_MIN, need = HEADER;
	int err;

	if (have) {
		if (rf_wire_frame(rx->buf + rx->start, have, &need) < 0)
			return -EPROTO;
		if (need > want)
			want = need;
	}
	if (want > RX_MIN)
		rx->idle = 0;
	else if (rx->cap > RX_MIN && have <= RX_MIN / 2 && ++rx->idle >= RX_IDLE) {
		rx->idle = 0;
		err = rx_resize(rx, RX_MIN);
		if (err)
			return err;
	}
	if (want > rx->cap)
		return rx_resize(rx, want);
	if (rx->start && (!have || rx->start + want > rx->cap)) {
		memmove(rx->buf, rx->buf + rx->start, have);
		rx->start = 0;
		rx->end = have;
	}
	return rx->end == rx->cap ? -ENOBUFS : 0;
}

ssize_t rf_rx_read(struct rf_rx *rx, int fd)
{
	ssize_t n;
	int err = rx_room(rx);

	if (err)
		return err;
	do
		n = read(fd, rx->buf + rx->end, rx->cap - rx->end);
	while (n < 0 && errno == EINTR);
	if (n < 0)
		return -errno;
	rx->end += (size_t)n;
	return n;
}

ssize_t rf_rx_next(struct rf_rx *rx, void **frame)
{
	ssize_t n;

	if (rx->start == rx->end)
		return 0;
	n = rf_wire_frame(rx->buf + rx->start, rx->end - rx->start, NULL);
	if (n <= 0)
		return n;
	*frame = rx->buf + rx->start;
	rx->start += (size_t)n;
	return n;
}

void *rf_rx_take(struct rf_rx *rx, size_t n)
{
	const size_t rest = rx->end - rx->start;
	unsigned char *old = rx->buf, *buf;

	/* Nor does anybody hold much memory for little. */
	if (rest > n || rx->cap > 2 * n)
		return NULL;
	buf = malloc(rx->cap);
	if (!buf)
		return NULL;
	memcpy(buf, old + rx->start, rest);
	rx->buf = buf;
	rx->start = 0;
	rx->end = rest;
	return old;
}
