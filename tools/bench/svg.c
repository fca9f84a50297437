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

/* A vertical line at each 1, 2, 5 of a decade. */
static void x_axis(FILE *f, size_t first, size_t last, double xs)
{
	static const int steps[] = {1, 2, 5};

	for (int decade = 2; decade < 9; decade++) {
		for (int k = 0; k < 3; k++) {
			double ns = pow(10, decade) * steps[k];
			double b = log2(ns / BIN_FIRST) * BINS_PER_OCTAVE;
			if (b < (double)first || b > (double)last)
				continue;
			double x = LEFT + (b - (double)first) * xs;
			fprintf(f, "<line x1='%.1f' y1='%d' x2='%.1f' y2='%d' stroke='#ddd'/>", x,
				TOP, x, H - BOTTOM);
			fprintf(f, "<text x='%.1f' y='%d' text-anchor='middle'>%g</text>\n", x,
				H - BOTTOM + 18, ns / 1000);
		}
	}
	fprintf(f, "<path d='M%d %dV%dH%d' fill='none' stroke='black'/>\n", LEFT, TOP, H - BOTTOM,
		W - RIGHT);
	fprintf(f, "<text x='%d' y='%d' text-anchor='middle'>", (LEFT + W - RIGHT) / 2,
		H - BOTTOM + 45);
	fputs("latency, microseconds (logarithmic)</text>\n", f);
}

/* About five horizontal lines. */
static void y_axis(FILE *f, double top, double ys)
{
	double step = top > 0.5 ? 0.2 : top > 0.2 ? 0.1 : top > 0.1 ? 0.05 : 0.02;

	for (int i = 0; step * i <= top; i++) {
		double y = H - BOTTOM - step * i * ys;
		fprintf(f, "<line x1='%d' y1='%.1f' x2='%d' y2='%.1f' stroke='#ddd'/>", LEFT, y,
			W - RIGHT, y);
		fprintf(f, "<text x='%d' y='%.1f' text-anchor='end'>%.0f %%</text>\n", LEFT - 8,
			y + 4, step * i * 100);
	}
	fprintf(f, "<text transform='translate(18 %d) rotate(-90)' text-anchor='middle'>",
		(TOP + H - BOTTOM) / 2);
	fputs("share of the faults</text>\n", f);
}

static void curve(FILE *f, const struct hist *h, size_t m, size_t first, size_t last, double xs,
		  double ys)
{
	double total = (double)hist_total(h);
	const char *c = colour[m % (sizeof(colour) / sizeof(colour[0]))];
	int x = W - RIGHT - 420, y = TOP + 14 + 22 * (int)m;

	if (total == 0)
		return;
	fprintf(f, "<path fill='%s' fill-opacity='0.15' stroke='%s' stroke-width='2' d='", c, c);
	for (size_t i = first; i <= last; i++)
		fprintf(f, "%c%.1f %.1f", i == first ? 'M' : 'L',
			LEFT + ((double)(i - first) + 0.5) * xs,
			H - BOTTOM - (double)h->n[i] / total * ys);
	fprintf(f, "'/>\n<rect x='%d' y='%d' width='14' height='14' fill='%s'/>", x, y - 12, c);
	fprintf(f, "<text x='%d' y='%d'>%s: median %.1f µs, 99 %% within %.1f µs</text>\n", x + 22,
		y, h->name, hist_percentile(h, 50) / 1000, hist_percentile(h, 99) / 1000);
}

int svg_write(const char *path, const struct hist *h, size_t n)
{
	size_t first, last;
	double top;

	FILE *f = fopen(path, "w");
	if (!f)
		return -errno;
	extent(h, n, &first, &last, &top);
	double xs = (double)(W - LEFT - RIGHT) / (double)(last - first + 1);
	double ys = (double)(H - TOP - BOTTOM) / top;

	fprintf(f, "<svg xmlns='http://www.w3.org/2000/svg' width='%d' height='%d' ", W, H);
	fprintf(f, "viewBox='0 0 %d %d' font-family='sans-serif' font-size='13'>\n", W, H);
	fputs("<rect width='100%' height='100%' fill='white'/>\n", f);
	fprintf(f, "<text x='%d' y='28' font-size='17'>", LEFT);
	fputs("Latency of a page fault on a cached page</text>\n", f);
	fprintf(f, "<text x='%d' y='47' fill='#555'>one load in each block of 64 pages, ", LEFT);
	fputs("random order, page-table entries stripped</text>\n", f);
	x_axis(f, first, last, xs);
	y_axis(f, top, ys);
	for (size_t m = 0; m < n; m++)
		curve(f, &h[m], m, first, last, xs, ys);
	fputs("</svg>\n", f);
	int bad = ferror(f);
	return fclose(f) || bad ? -EIO : 0;
}
