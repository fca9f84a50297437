/* SPDX-License-Identifier: MIT */
/*
 * wire_test.c - frames survive the way there and back, and nothing else passes as a frame;
 * addresses are claimed by one server at a time.
 */
#include <criterion/criterion.h>
#include <criterion/new/assert.h>

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <unistd.h>

#include <refault/transport.h>
#include <refault/wire.h>

static struct rf_msg store_msg(rf_range *ranges, u_int n)
{
	static char path[] = "dir/file";
	struct rf_msg m = {.xid = 77, .body.type = RF_STORE};
	rf_store *st = &m.body.rf_body_u.store;

	st->file.volume = 3;
	st->file.fid.ino = 0x123456789abcdefull;
	st->file.fid.gen = UINT64_MAX;
	st->file.path = path;
	st->request = 42;
	st->may_extend = TRUE;
	st->ranges.ranges_len = n;
	st->ranges.ranges_val = ranges;
	return m;
}

Test(wire, round_trip)
{
	rf_range r[2] = {{.off = 1, .len = 2}, {.off = (uint64_t)1 << 60, .len = 3}};
	struct rf_msg m = store_msg(r, 2), got;
	unsigned char buf[512];
	void *payload;
	size_t plen, need;
	ssize_t n = rf_wire_encode(buf, sizeof(buf), &m, 5);

	cr_assert(n > 0);
	memcpy(buf + n, "hello", 6);
	cr_assert(eq(i64, rf_wire_frame(buf, (size_t)n, &need), 0));
	cr_assert(eq(sz, need, (size_t)n + 5));
	cr_assert(eq(i64, rf_wire_frame(buf, (size_t)n + 100, NULL), n + 5));
	cr_assert(eq(int, rf_wire_decode(buf, (size_t)n + 5, &got, &payload, &plen), 0));
	cr_assert(eq(u32, got.xid, 77));
	cr_assert(eq(u64, got.body.rf_body_u.store.file.fid.gen, UINT64_MAX));
	cr_assert(eq(str, got.body.rf_body_u.store.file.path, "dir/file"));
	cr_assert(eq(u32, got.body.rf_body_u.store.ranges.ranges_len, 2));
	cr_assert(eq(u64, got.body.rf_body_u.store.ranges.ranges_val[1].off, (uint64_t)1 << 60));
	cr_assert(eq(sz, plen, 5));
	cr_assert(not(memcmp(payload, "hello", 5)));
	rf_wire_free(&got);
}

Test(wire, too_large)
{
	struct rf_msg m = {.xid = 1, .body.type = RF_PING};
	unsigned char buf[64];

	cr_assert(eq(i64, rf_wire_encode(buf, 15, &m, 0), -EMSGSIZE));
	cr_assert(eq(i64, rf_wire_encode(buf, 16, &m, 0), 16));
	cr_assert(eq(i64, rf_wire_encode(buf, 64, &m, RF_MAX_FRAME - 12), 16));
	cr_assert(eq(i64, rf_wire_encode(buf, 64, &m, RF_MAX_FRAME - 11), -EMSGSIZE));
	cr_assert(eq(i64, rf_wire_encode(buf, 64, &m, SIZE_MAX), -EMSGSIZE));
}

Test(wire, bad_lengths)
{
	static const unsigned char bad[][8] = {
	    {0, 0, 0, 0, 0, 0, 0, 0},              /* shorter than any message */
	    {0xff, 0xff, 0xff, 0xff, 0, 0, 0, 8},  /* longer than any */
	    {0, 0, 0, 12, 0, 0, 0, 12},            /* XDR part past the end */
	    {0, 0, 0, 12, 0, 0, 0, 4},             /* XDR part too short */
	    {0, 0, 0, 20, 0, 0, 0, 9},             /* not a multiple of four */
	    {0, 0, 0, 20, 0xff, 0xff, 0xff, 0xf8}, /* overflow */
	};
	size_t i;

	for (i = 0; i < sizeof(bad) / sizeof(bad[0]); i++)
		cr_expect(eq(i64, rf_wire_frame(bad[i], 8, NULL), -EPROTO), "case %zu", i);
	/* The length alone tells, before another byte is waited for. */
	cr_expect(eq(i64, rf_wire_frame(bad[1], 4, NULL), -EPROTO));
}

/* Every truncation of the XDR part, and every single byte changed: no crash, no leak, no half
 * message. */
Test(wire, mutations)
{
	rf_range r[3] = {{1, 2}, {3, 4}, {5, 6}};
	struct rf_msg m = store_msg(r, 3), got;
	unsigned char buf[512], bad[512];
	void *payload;
	size_t plen, i;
	ssize_t n = rf_wire_encode(buf, sizeof(buf), &m, 0);
	int bit;

	cr_assert(n > 0);
	for (i = 8; i < (size_t)n - 8; i += 4) {
		memcpy(bad, buf, i + 8);
		bad[2] = (unsigned char)((i + 4) >> 8);
		bad[3] = (unsigned char)(i + 4);
		bad[6] = (unsigned char)(i >> 8);
		bad[7] = (unsigned char)i;
		cr_expect(eq(int, rf_wire_decode(bad, i + 8, &got, &payload, &plen), -EPROTO),
			  "cut at %zu", i);
	}
	for (i = 0; i < (size_t)n; i++)
		for (bit = 0; bit < 8; bit++) {
			memcpy(bad, buf, (size_t)n);
			bad[i] ^= (unsigned char)(1 << bit);
			if (!rf_wire_decode(bad, (size_t)n, &got, &payload, &plen))
				rf_wire_free(&got);
		}
}

/* Frames of all sizes through a pipe that gives a few bytes at a time. */
Test(wire, receive_buffer)
{
	static const size_t sizes[] = {0, 1, 100, 70000, 3, RF_MAX_DATA, 0, 17, 300000};
	const size_t nframes = sizeof(sizes) / sizeof(sizes[0]);
	unsigned char *out = malloc(4 << 20), *p = out, *end;
	struct rf_msg m = {.body.type = RF_PING}, got;
	struct rf_rx rx;
	void *frame, *payload;
	size_t i, k = 0, plen, chunk = 1;
	ssize_t n;
	int sv[2];

	for (i = 0; i < nframes; i++) {
		m.xid = (u_int)i;
		n = rf_wire_encode(p, 64, &m, sizes[i]);
		cr_assert(eq(i64, n, 16));
		memset(p + n, (int)i, sizes[i]);
		p += (size_t)n + sizes[i];
	}
	end = p;
	p = out;
	cr_assert(not(socketpair(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK, 0, sv)));
	rf_rx_init(&rx);
	cr_assert(eq(i64, rf_rx_read(&rx, sv[1]), -EAGAIN));
	while (k < nframes) {
		size_t left = (size_t)(end - p);

		n = write(sv[0], p, left < chunk ? left : chunk);
		if (n > 0)
			p += n;
		chunk = chunk * 3 % 100003 + 1;
		while ((n = rf_rx_read(&rx, sv[1])) > 0)
			while ((n = rf_rx_next(&rx, &frame)) > 0) {
				cr_assert(
				    not(rf_wire_decode(frame, (size_t)n, &got, &payload, &plen)));
				cr_assert(eq(u32, got.xid, (u_int)k));
				cr_assert(eq(sz, plen, sizes[k]));
				cr_assert(plen == 0 || ((unsigned char *)payload)[plen - 1] == k);
				rf_wire_free(&got);
				k++;
			}
		cr_assert(n == -EAGAIN || n == 0);
	}
	/* After a while of small things the big buffer is given back. */
	for (i = 0; i < 200; i++) {
		m.xid = 1;
		n = rf_wire_encode(out, 64, &m, 0);
		cr_assert(eq(i64, write(sv[0], out, (size_t)n), n));
		cr_assert(eq(i64, rf_rx_read(&rx, sv[1]), n));
		cr_assert(eq(i64, rf_rx_next(&rx, &frame), n));
	}
	cr_assert(rx.cap <= 65536);
	close(sv[0]);
	cr_assert(eq(i64, rf_rx_read(&rx, sv[1]), 0));
	rf_rx_free(&rx);
	close(sv[1]);
	free(out);
}

/* Frames that are kept stay what they were while others come, and nothing of these is lost. */
Test(wire, a_frame_can_be_kept)
{
	enum { BIG = 300000, FRAMES = 40 };
	struct {
		void *buf;
		unsigned char *data;
	} kept[FRAMES] = {0};
	unsigned char *out = malloc(FRAMES * (BIG + 64)), *at = out;
	struct rf_msg m = {.body.type = RF_PING};
	size_t need = 0, off = 0;
	unsigned i, got = 0, taken = 0;
	struct rf_rx rx;
	void *frame;
	ssize_t n;
	int sv[2];

	cr_assert(eq(int, socketpair(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK, 0, sv), 0));
	/* Large ones with small ones in between. */
	for (i = 0; i < FRAMES; i++) {
		const size_t len = i % 3 == 2 ? 100 : BIG;

		m.xid = i;
		n = rf_wire_encode(at, 64, &m, len);
		cr_assert(n > 0);
		memset(at + n, (int)i, len);
		at += (size_t)n + len;
	}
	need = (size_t)(at - out);
	rf_rx_init(&rx);
	while (got < FRAMES) {
		n = write(sv[0], out + off, need - off);
		off += n > 0 ? (size_t)n : 0;
		n = rf_rx_read(&rx, sv[1]);
		cr_assert(n > 0 || n == -EAGAIN);
		while ((n = rf_rx_next(&rx, &frame)) > 0) {
			const size_t len = got % 3 == 2 ? 100 : BIG;

			kept[got].buf = rf_rx_take(&rx, len);
			if (kept[got].buf) {
				kept[got].data = (unsigned char *)frame + n - len;
				taken++;
				cr_assert(rx.buf != kept[got].buf);
			}
			got++;
		}
		cr_assert(eq(i64, n, 0));
	}
	cr_assert(taken >= FRAMES / 3, "%u of %u were kept", taken, FRAMES);
	for (i = 0; i < FRAMES; i++) {
		for (size_t k = 0; kept[i].data && k < (i % 3 == 2 ? 100 : BIG); k++)
			cr_assert(eq(u8, kept[i].data[k], (unsigned char)i));
		cr_assert(i % 3 != 2 || !kept[i].buf, "a large buffer is held for little");
		free(kept[i].buf);
	}
	rf_rx_free(&rx);
	close(sv[0]);
	close(sv[1]);
	free(out);
}

Test(transport, unix_socket)
{
	char dir[] = "/tmp/refault-wire-XXXXXX", addr[128], file[128], longer[256];
	const struct rf_transport *t;
	const char *rest, *rest2;
	struct rf_peer peer;
	int l, c, a;

	cr_assert(mkdtemp(dir) != NULL);
	snprintf(addr, sizeof(addr), "unix:%s/s", dir);
	snprintf(file, sizeof(file), "unix:%s/f", dir);
	cr_assert(rf_transport_find("unixx:/a", &rest) == NULL);
	cr_assert(rf_transport_find("uni:/a", &rest) == NULL);
	cr_assert(rf_transport_find("/a", &rest) == NULL);
	t = rf_transport_find(addr, &rest);
	cr_assert(t != NULL);

	cr_assert(eq(int, t->connect(rest), -ENOENT));
	l = t->listen(rest);
	cr_assert(l >= 0);
	cr_assert(eq(int, t->accept(l, &peer), -EAGAIN));
	cr_assert(eq(int, t->listen(rest), -EADDRINUSE));
	a = t->accept(l, &peer); /* the probe */
	cr_assert(a >= 0);
	close(a);
	c = t->connect(rest);
	cr_assert(c >= 0);
	a = t->accept(l, &peer);
	cr_assert(a >= 0);
	cr_assert(eq(u32, peer.uid, getuid()));
	cr_assert(eq(int, peer.pid, getpid()));
	close(a);
	close(c);

	/* Its server is gone: the address is free again. */
	close(l);
	cr_assert(eq(int, t->connect(rest), -ECONNREFUSED));
	l = t->listen(rest);
	cr_assert(l >= 0);
	close(l);
	t->unlisten(rest);
	cr_assert(eq(int, access(rest, F_OK), -1));

	/* Somebody's file is never removed. */
	t = rf_transport_find(file, &rest2);
	a = open(rest2, O_CREAT | O_WRONLY | O_CLOEXEC, 0600);
	close(a);
	cr_assert(eq(int, t->listen(rest2), -ENOTSOCK));
	cr_assert(eq(int, unlink(rest2), 0));

	memset(longer, 'x', sizeof(longer) - 1);
	longer[sizeof(longer) - 1] = 0;
	cr_assert(eq(int, t->listen(longer), -ENAMETOOLONG));
	cr_assert(eq(int, t->listen(""), -EINVAL));
	rmdir(dir);
}
