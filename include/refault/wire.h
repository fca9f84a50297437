/* SPDX-License-Identifier: MIT */
/*
 * wire.h - frames of protocol.x over a transport.  Implemented by tools/wire, used by agent, server
 * and tests.  Not thread-safe for one object; not async-signal-safe.
 */
#ifndef REFAULT_WIRE_H
#define REFAULT_WIRE_H

#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>
#include <sys/uio.h>

#include "protocol.h"

/*
 * Encode msg and the frame header into buf (cap bytes).  payload_len is only counted: the caller
 * sends the payload right behind.  Returns the bytes used, -EMSGSIZE if the frame would be too
 * large for buf or for RF_MAX_FRAME.
 */
ssize_t rf_wire_encode(void *buf, size_t cap, struct rf_msg *msg, size_t payload_len);

/*
 * Look at the n bytes at buf.  Returns the whole frame's length if it is complete, 0 if more bytes
 * are needed (*need, if not NULL, says how many in all), -EPROTO if it can never become a frame.
 */
ssize_t rf_wire_frame(const void *buf, size_t n, size_t *need);

/*
 * Decode a complete frame of len bytes.  *payload points into buf.  What msg then owns is freed by
 * rf_wire_free.  Returns 0 or -EPROTO (msg is then empty, nothing to free).
 */
int rf_wire_decode(void *buf, size_t len, struct rf_msg *msg, void **payload, size_t *payload_len);
void rf_wire_free(struct rf_msg *msg);

/*
 * A growing receive buffer for a non-blocking stream.  rf_rx_read does one read(2) (returns bytes
 * read, 0 at end of file, -EAGAIN, -errno; take all complete frames first); rf_rx_next gives the
 * next complete frame (length, 0 or -EPROTO); the frame is valid until the next rf_rx_read.
 */
struct rf_rx {
	unsigned char *buf;
	size_t cap, start, end;
	unsigned idle; /* reads since a big buffer was last needed */
};
void rf_rx_init(struct rf_rx *rx);
void rf_rx_init(struct rf_rx *rx);
void rf_rx_free(struct rf_rx *rx);
ssize_t rf_rx_read(struct rf_rx *rx, int fd);
ssize_t rf_rx_next(struct rf_rx *rx, void **frame);
/*
 * Keep the frame that was given last: the buffer that it lies in is the caller's now, to be freed,
 * and rx goes on with another.  NULL: copying n bytes out of it costs less, or no memory.
 */
void *rf_rx_take(struct rf_rx *rx, size_t n);

#endif
