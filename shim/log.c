/* SPDX-License-Identifier: MIT */
/*
 * log.c - the library's only voice: one write(2) of one line to stderr.  It formats without stdio
 * so that the fault path may call it.
 */
#include <stdarg.h>
#include <string.h>
#include <unistd.h>

#include "core.h"

struct line {
	char buf[1024];
	size_t n;
};

static void put(struct line *l, char ch)
{
	if (l->n < sizeof(l->buf) - 1)
		l->buf[l->n++] = ch;
}

static void put_str(struct line *l, const char *s)
{
	for (s = s ? s : "(null)"; *s; s++)
		put(l, *s);
}

static void put_num(struct line *l, uint64_t v, unsigned base)
{
	char tmp[24];
	size_t n = 0;
	do
		tmp[n++] = "0123456789abcdef"[v % base];
	while ((v /= base) != 0);
	while (n)
		put(l, tmp[--n]);
}

void log_line(const char *fmt, ...)
{
	struct line l = {.n = 0};
	va_list ap;

	put_str(&l, "refault: ");
	va_start(ap, fmt);
	for (; *fmt; fmt++) {
		if (*fmt != '%') {
			put(&l, *fmt);
			continue;
		}
		switch (*++fmt) {
		case 's':
			put_str(&l, va_arg(ap, const char *));
			break;
		case 'd': {
			int v = va_arg(ap, int);
			if (v < 0)
				put(&l, '-');
			put_num(&l, v < 0 ? -(uint64_t)v : (uint64_t)v, 10);
			break;
		}
		case 'u':
			put_num(&l, va_arg(ap, unsigned), 10);
			break;
		case 'l':
			put_num(&l, va_arg(ap, uint64_t), 10);
			break;
		case 'x':
			put_num(&l, va_arg(ap, uint64_t), 16);
			break;
		default:
			put(&l, *fmt);
		}
	}
	va_end(ap);
	l.buf[l.n++] = '\n';
	rf_syscall(SYS_write, STDERR_FILENO, l.buf, l.n);
}
