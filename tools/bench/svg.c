/* SPDX-License-Identifier: MIT */
/*
 * svg.c - fault-latency distributions as a picture: x is latency on a logarithmic axis, y the share
 * of the faults of a mode that fall into one bin (an eighth of an octave).
 */
#include <errno.h>
#include <math.h>
#include <stdio.h>
#include <string.h>

#include "bench.h"

enum { W = 900, H = 480, LEFT = 70, RIGHT = 30, TOP = 60, BOTTOM = 70 };

static const char *const colour[] = {"#4477aa", "#228833", "#cc6677", "#aa8800"};

double hist_bin_ns(size_t bin)
{
	return BIN_FIRST * exp2((double)bin / BINS_PER_OCTAVE);
}

void hist_add(struct hist *h, uint64_t ns)
{
	double b = ns <= BIN_FIRST ? 0 : log2((double)ns / BIN_FIRST) * BINS_PER_OCTAVE;

	h->n[b < BINS - 1 ? (size_t)b : BINS - 1]++;
}

static uint64_t hist_total(const struct hist *h)
{
	uint64_t n = 0;

	for (size_t i = 0; i < BINS; i++)
		n += h->n[i];
	return n;
}

double hist_percentile(const struct hist *h, double p)
{
	double left = (double)hist_total(h) * p / 100;

	for (size_t i = 0; i < BINS; i++) {
		if (left < (double)h->n[i])
			return hist_bin_ns(i) * exp2(left / (double)h->n[i] / BINS_PER_OCTAVE);
		left -= (double)h->n[i];
	}
	return hist_bin_ns(BINS);
}

/* The bins that any mode uses, and the greatest share. */
static void extent(const struct hist *h, size_t n, size_t *first, size_t *last, double *top)
{
	*first = BINS - 1;
	*last = 0;
	*top = 0.01;
	for (size_t m = 0; m < n; m++) {
		double total = (double)hist_total(&h[m]);
		for (size_t i = 0; i < BINS; i++) {
			/* Single stragglers far out do not stretch the picture. */
			if (total == 0 || (double)h[m].n[i] < total * 3e-4)
				continue;
			if (i < *first)
				*first = i;
			if (i > *last)
				*last = i;
			if ((double)h[m].n[i] / total > *top)
				*top = (double)h[m].n[i] / total;
		}
	}
	if (*first > *last)
		*first = *last;
	*first = *first > 2 ? *first - 2 : 0;
	*last = *last + 4 < BINS ? *last + 4 : BINS - 1;
}

int svg_write(const char *path, const struct hist *h, size_t n)
{
	size_t first, last;
	double top;

	FILE *f = fopen(path, "w");
	if (!f)
		return -errno;
	extent(h, n, &first, &last, &top);
	double xs = (double)(W - LEFT - RIGHT) / (double)(last - first);
	double ys = (double)(H - TOP - BOTTOM) / top;

	fprintf(
	    f,
	    "<svg xmlns='http://www.w3.org/2000/svg' width='%d' height='%d' "
	    "viewBox='0 0 %d %d' font-family='sans-serif' font-size='13'>\n"
	    "<rect width='100%%' height='100%%' fill='white'/>\n"
	    "<text x='%d' y='28' font-size='17'>Latency of a page fault on a cached page</text>\n"
	    "<text x='%d' y='47' fill='#555'>one load in each block of 64 pages, random order, "
	    "page-table entries stripped</text>\n",
	    W, H, W, H, LEFT, LEFT);

	/* x: a line at each 1, 2, 5 of a decade */
	for (double decade = 100; decade < 1e9; decade *= 10) {
		for (int k = 0; k < 3; k++) {
			double ns = decade * (k == 0 ? 1 : k == 1 ? 2 : 5);
			double b = log2(ns / BIN_FIRST) * BINS_PER_OCTAVE;
			if (b < (double)first || b > (double)last)
				continue;
			double x = LEFT + (b - (double)first) * xs;
			fprintf(f,
				"<line x1='%.1f' y1='%d' x2='%.1f' y2='%d' stroke='#ddd'/>"
				"<text x='%.1f' y='%d' text-anchor='middle'>%g</text>\n",
				x, TOP, x, H - BOTTOM, x, H - BOTTOM + 18, ns / 1000);
		}
	}
	/* y: about five lines */
	double step = top > 0.5 ? 0.2 : top > 0.2 ? 0.1 : top > 0.1 ? 0.05 : 0.02;
	for (double y = 0; y <= top; y += step)
		fprintf(f,
			"<line x1='%d' y1='%.1f' x2='%d' y2='%.1f' stroke='#ddd'/>"
			"<text x='%d' y='%.1f' text-anchor='end'>%.0f %%</text>\n",
			LEFT, H - BOTTOM - y * ys, W - RIGHT, H - BOTTOM - y * ys, LEFT - 8,
			H - BOTTOM - y * ys + 4, y * 100);
	fprintf(
	    f,
	    "<line x1='%d' y1='%d' x2='%d' y2='%d' stroke='black'/>\n"
	    "<line x1='%d' y1='%d' x2='%d' y2='%d' stroke='black'/>\n"
	    "<text x='%d' y='%d' text-anchor='middle'>latency, microseconds (logarithmic)</text>\n"
	    "<text transform='translate(18 %d) rotate(-90)' text-anchor='middle'>share of the "
	    "faults</text>\n",
	    LEFT, H - BOTTOM, W - RIGHT, H - BOTTOM, LEFT, TOP, LEFT, H - BOTTOM,
	    (LEFT + W - RIGHT) / 2, H - BOTTOM + 45, (TOP + H - BOTTOM) / 2);

	for (size_t m = 0; m < n; m++) {
		double total = (double)hist_total(&h[m]);
		if (total == 0)
			continue;
		fprintf(f, "<path fill='%s' fill-opacity='0.15' stroke='%s' stroke-width='2' d='M",
			colour[m % 4], colour[m % 4]);
		for (size_t i = first; i <= last; i++)
			fprintf(f, "%s%.1f %.1f", i == first ? "" : " L",
				LEFT + ((double)(i - first) + 0.5) * xs,
				H - BOTTOM - (double)h[m].n[i] / total * ys);
		fputs("'/>\n", f);
		double x = W - RIGHT - 420, y = TOP + 14 + 22 * (double)m;
		fprintf(f,
			"<rect x='%.0f' y='%.0f' width='14' height='14' fill='%s'/>"
			"<text x='%.0f' y='%.0f'>%s: median %.1f µs, 99 %% within %.1f µs</text>\n",
			x, y - 12, colour[m % 4], x + 22, y, h[m].name,
			hist_percentile(&h[m], 50) / 1000, hist_percentile(&h[m], 99) / 1000);
	}
	fputs("</svg>\n", f);
	int bad = ferror(f);
	return fclose(f) || bad ? -EIO : 0;
}
