/* Products with weights that are narrower than the activations: float16, or codes of 8 and 4 bits under a scale for
   some inputs each. In float32; each sum runs in one order, whatever the batch. Compiled with cpu.c. */
#include "panels.h"
#include "tiles.h"

#if defined(__AVX512F__)
enum { GROUP = 16 }; /* sums that stay in registers: rows times panels */
#else
enum { GROUP = 4 };
#endif
/* ---- weights in panels ---- */

int64_t packed_bytes(int bits, int group, int scale_bytes, int shift_bytes, int outs, int n) {
  form_t form = {bits, group, scale_bytes, shift_bytes, n};
  return (outs + LANES - 1) / LANES * panel_bytes(form, 0, n);
}

/* One number for each output of a piece: column `at` of `from` (outs, groups). */
static uint8_t *pack_numbers(uint8_t *to, const uint8_t *from, int bytes, int first, int outs, int groups, int at) {
  for (int o = first; bytes && o < first + LANES; o++, to += bytes) {
    if (o < outs)
      memcpy(to, from + ((size_t)o * groups + at) * bytes, bytes);
    else
      memset(to, 0, bytes);
  }
  return to;
}

static inline int nibble_of(const uint8_t *row, int k) { /* of the neutral form: see neutral.py */
  int pair = row[k / 32 * 16 + k % 16];
  return k % 32 < 16 ? pair & 15 : pair >> 4;
}

/* Codes of LANES outputs, from input `k` to `stop`. */
static inline __attribute__((always_inline)) void pack_codes(uint8_t *to, const uint8_t *codes, int first, int outs,
                                                             int k, int stop, int n, int bits) {
  int each = bits == 4 ? 8 : 1, bytes = each * bits / 8;
  for (int o = first; o < first + LANES; o++, to += bytes) {
    const uint8_t *row = codes + (size_t)o * n * bits / 8;
    uint8_t *at = to;
    for (int i = k; i < stop; i += each, at += LANES * bytes) {
      uint32_t some = 0;
      if (o < outs && bits == 4)
        for (int j = 0; j < 8; j++) some |= (uint32_t)nibble_of(row, i + j) << 4 * j;
      else if (o < outs)
        memcpy(&some, row + (size_t)i * bytes, bytes);
      memcpy(at, &some, bytes);
    }
  }
}

/* Weights (outs, n) in panels. scale, shift: (outs, groups). What a last panel has more than `outs` is filled with
   zeros. */
void pack_panels(uint8_t *to, const uint8_t *codes, const uint8_t *scale, const uint8_t *shift, int bits, int group,
                 int scale_bytes, int shift_bytes, int outs, int n) {
  form_t form = {bits, group, scale_bytes, shift_bytes, n};
  int groups = (n + group - 1) / group;
  for (int start = 0; start < n; start += DEPTH) {
    int end = n - start < DEPTH ? n : start + DEPTH;
    for (int first = 0; first < outs; first += LANES) {
      for (int k = start; k < end;) {
        int stop = k + piece_at(form, k);
        to = pack_numbers(to, scale, scale_bytes, first, outs, groups, k / group);
        to = pack_numbers(to, shift, shift_bytes, first, outs, groups, k / group);
        if (bits == 16) pack_codes(to, codes, first, outs, k, stop, n, 16);
        if (bits == 8) pack_codes(to, codes, first, outs, k, stop, n, 8);
        if (bits == 4) pack_codes(to, codes, first, outs, k, stop, n, 4);
        to += (size_t)(stop - k) * LANES * bits / 8;
        k = stop;
      }
    }
  }
}

/* ---- products ---- */

/* y += the sums (rows, panels) over a piece as what they mean; what that is stands at `numbers` in the first panel. */
static __attribute__((noinline)) void add_piece(float *y, const lanes *sums, const float *totals,
                                                const uint8_t *numbers, const block_t *block, int real, int panels) {
  int scale = block->form.scale_bytes, shift = block->form.shift_bytes;
  for (int r = 0; r < real; r++)
    for (int p = 0; p < panels; p++, sums++) {
      const uint8_t *at = numbers + p * block->size;
      lanes *to = (lanes *)(y + r * block->step + p * LANES), sum = *to;
      sum = scale ? fused(*sums, numbers_at(at, scale), sum) : sum + *sums;
      if (shift) sum = fused((lanes){0} + totals[(size_t)r * block->pieces], numbers_at(at + LANES * scale, shift), sum);
      *to = sum;
    }
}

/* y (rows, step) += x times some panels over the inputs of a block; x is (inputs, rows), of which the first `real` are
   somebody's, and `totals` (rows, pieces) the sums of x. Every sum is one chain over the inputs of a piece, and then
   over the pieces, so neither rows nor panels at a time can change a result. */
static inline __attribute__((always_inline)) void panels_of(float *y, const float *x, const float *totals,
                                                            const uint8_t *weights, const block_t *block, int real,
                                                            int rows, int panels, int bits) {
  form_t form = block->form;
  size_t size = block->size;
  int left = form.group - block->start % form.group; /* of the scale that the block begins with */
  for (int k = block->start; k < block->end; left = form.group, totals += form.shift_bytes ? 1 : 0) {
    int piece = block->end - k < left ? block->end - k : left;
    const uint8_t *codes = weights + header_bytes(form);
    lanes sums[GROUP];
#pragma GCC unroll 16
    for (int i = 0; i < rows * panels; i++) sums[i] = (lanes){0};
    if (bits == 4) {
      for (int i = 0; i < piece; i += 8) {
#pragma GCC unroll 16
        for (int p = 0; p < panels; p++) {
          const uint8_t *at = codes + p * size + (size_t)i * LANES / 2;
          __builtin_prefetch(at + AHEAD);
          int_lanes eight = *(const int_lanes *)at;
#pragma GCC unroll 8
          for (int j = 0; j < 8; j++) {
            lanes wide = from_nibbles(eight, 4 * j);
#pragma GCC unroll 16
            for (int r = 0; r < rows; r++) sums[r * panels + p] += x[(i + j) * rows + r] * wide;
          }
        }
      }
    } else {
      for (int i = 0; i < piece; i++) {
        lanes wide[GROUP];
#pragma GCC unroll 16
        for (int p = 0; p < panels; p++) {
          const uint8_t *at = codes + p * size + (size_t)i * LANES * bits / 8;
          __builtin_prefetch(at + AHEAD);
          wide[p] = bits == 8 ? bytes_at(at) : numbers_at(at, bits / 8);
        }
#pragma GCC unroll 16
        for (int s = 0; s < rows * panels; s++) sums[s] += x[i * rows + s / panels] * wide[s % panels];
      }
    }
    add_piece(y, sums, totals, weights, block, real, panels);
    weights = codes + (size_t)piece * LANES * bits / 8;
    x += (size_t)piece * rows;
    k += piece;
  }
}

#define FOR_ROWS(NAME, BITS)                                                                                     \
  static void NAME(float *y, const float *x, const float *totals, const uint8_t *weights, const block_t *block,  \
                   int real, int rows, int panels) {                                                             \
    switch (rows) { /* fewer rows leave registers for more panels: memory is then read in more places at once */ \
      WITH(1, BITS) WITH(2, BITS) WITH(4, BITS) WIDER(BITS)                                                      \
    }                                                                                                            \
  }
#define WITH(R, BITS)                                                                                           \
  case R:                                                                                                       \
    if (panels == GROUP / R) return panels_of(y, x, totals, weights, block, real, R, GROUP / R, BITS);          \
    for (int p = 0; p < panels; p++)                                                                            \
      panels_of(y + p * LANES, x, totals, weights + p * block->size, block, real, R, 1, BITS);                  \
    return;
#if defined(__AVX512F__)
#define WIDER(BITS) WITH(8, BITS) WITH(16, BITS)
#else
#define WIDER(BITS)
#endif
FOR_ROWS(halves_for, 16)
FOR_ROWS(bytes_for, 8)
FOR_ROWS(nibbles_for, 4)
FOR_ROWS(floats_for, 32)

/* The sums of a row over each piece. */
static void add_up(float *totals, const float *x, form_t form) {
  for (int k = 0; k < form.n;) {
    int end = k + piece_at(form, k);
    lanes sums = {0};
    for (; k + LANES <= end; k += LANES) sums += load(x + k);
    float sum = total(sums);
    for (; k < end; k++) sum += x[k];
    *totals++ = sum;
  }
}

/* Rows from which tiles are faster, and without tiles those from which it pays to widen weights once for all of them:
   float16 is widened with less ado than codes. */
static inline int rows_for_tiles(form_t form) { return form.bits == 16 ? 32 : 17; }
static inline int rows_for_widening(form_t form) { return form.bits == 16 ? 64 : 32; }

/* y (rows, wide) = x (rows, n) times weights as `pack_panels` left them, plus the bias (wide) if there is one; `wide` is
   a whole number of panels. In float32, or in what tiles make of it: see tiles.c. `invariant`: no row's sums depend on
   how many others there are. */
void panel_product(float *y, const float *x, const uint8_t *weights, const float *bias, int bits, int group,
                   int scale_bytes, int shift_bytes, int rows, int wide, int n, int invariant) {
  form_t form = {bits, group, scale_bytes, shift_bytes, n};
#if defined(TILES)
  if (!invariant && may_use_tiles && rows >= rows_for_tiles(form)) return tile_product(y, x, weights, bias, form, rows, wide);
#endif
  int once = !invariant && rows >= rows_for_widening(form);
  int most = once ? GROUP / 2 : GROUP; /* rows of a group: fewer leave registers for two panels */
  int pieces = pieces_in(form, 0, n), groups = (rows + most - 1) / most, rest = rows - (groups - 1) * most, width = 1;
  while (width < rest) width *= 2; /* of the last group */
  float *turned = rows == 1 ? NULL : room((size_t)groups * most * n * sizeof(float));
  float *totals = shift_bytes && !once ? room((size_t)rows * pieces * sizeof(float)) : NULL;
  int together = GROUP / (groups > 1 ? most : width);
#pragma omp parallel if ((long)rows * wide * n > PARALLEL_FROM)
  {
#pragma omp for schedule(static)
    for (int t = 0; t < rows; t++) {
      for (int o = 0; o < wide; o += LANES)
        *(lanes *)(y + (size_t)t * wide + o) = bias ? load(bias + o) : (lanes){0};
      if (totals) add_up(totals + (size_t)t * pieces, x + (size_t)t * n, form);
    }
#pragma omp for schedule(static)
    for (int g = 0; g < (turned ? groups : 0); g++) {
      int own = g < groups - 1 ? most : width, real = g < groups - 1 ? most : rest;
      float *to = turned + (size_t)g * most * n;
      for (int t = 0; t < own; t++)
        for (int k = 0; k < n; k++) to[k * own + t] = t < real ? x[(size_t)(g * most + t) * n + k] : 0.0f;
    }
    const uint8_t *read = weights;
    block_t block = {.form = form, .pieces = pieces, .step = wide};
    lanes floats[2 * DEPTH];
    for (block.start = 0; block.start < n; block.start = block.end) {
      block.end = n - block.start < DEPTH ? n : block.start + DEPTH;
      block.size = panel_bytes(form, block.start, block.end);
      block_t widened = block;
      widened.form = (form_t){32, DEPTH, 0, 0, n};
      widened.size = DEPTH * sizeof(lanes);
      /* Each thread keeps to its panels, so it need not wait for the others between depths. */
#pragma omp for schedule(static) nowait
      for (int o = 0; o < wide; o += together * LANES) {
        int panels = (wide - o) / LANES < together ? (wide - o) / LANES : together;
        const uint8_t *from = read + (size_t)(o / LANES) * block.size;
        for (int p = 0; once && p < panels; p++) widen_panel(floats + p * DEPTH, from + p * block.size, &block);
        for (int g = 0; g < groups; g++) {
          int own = g < groups - 1 ? most : width, real = g < groups - 1 ? most : rest;
          (once ? floats_for : bits == 16 ? halves_for : bits == 8 ? bytes_for : nibbles_for)(
              y + (size_t)g * most * wide + o,
              (turned ? turned : x) + (size_t)g * most * n + (size_t)block.start * own,
              totals ? totals + (size_t)g * most * pieces + block.piece : NULL,
              once ? (const uint8_t *)floats : from, once ? &widened : &block, real, own, panels);
        }
      }
      read += (size_t)(wide / LANES) * block.size;
      block.piece += pieces_in(form, block.start, block.end);
    }
  }
  free(turned);
  free(totals);
}
