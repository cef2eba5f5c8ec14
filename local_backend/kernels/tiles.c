/* Products with weights in panels by the processor's tiles (AMX), for many rows. Compiled with products.c.

   Tiles multiply pairs of bfloat16 and sum them up in float32. Every number is taken as the sum of two of them, 16 bits in
   all: of the four products of two such numbers three are made, and the fourth is below 2**-15 of the whole. Weights
   that were bfloat16 to begin with have no second one, and two products do. */
#include "tiles.h"

#include "panels.h"

#if defined(TILES)
enum { STEP = 32 };                      /* inputs of a tile */
enum { TILE = STEP * TILE_ROWS };        /* numbers of a tile */
enum { PANEL = DEPTH / STEP * 2 * TILE }; /* numbers of a panel's tiles over a DEPTH of inputs, the upper and lower ones */
enum { SUMS = TILE_ROWS * 2 * LANES };   /* of 16 rows and two panels */
enum { ROOM = 1 << 19 };                 /* bytes of sums that a thread has open: they stay in the second cache */

/* A row of x as a line of tiles: of each STEP inputs the upper halves, and in the next tile the lower ones. */
static void split_row(uint16_t *to, const float *x, int n) {
  for (int k = 0; k < n; k += STEP, to += 2 * TILE) {
    int left = n - k;
    lanes first, second;
    if (left >= STEP) {
      first = load(x + k), second = load(x + k + LANES);
    } else {
      first = load_some(x + k, left, 0.0f), second = load_some(x + k + LANES, left - LANES, 0.0f);
    }
    for (int half = 0; half < 2; half++) {
      __m512i both = (__m512i)_mm512_cvtne2ps_pbh((__m512)second, (__m512)first);
      _mm512_storeu_si512(to + half * TILE, both);
      first -= (lanes)_mm512_slli_epi32(_mm512_cvtepu16_epi32(_mm512_castsi512_si256(both)), 16);
      second -= (lanes)_mm512_slli_epi32(_mm512_cvtepu16_epi32(_mm512_extracti64x4_epi64(both, 1)), 16);
    }
  }
}

/* The bfloat16 of two vectors, side by side in each lane, which are taken away from them. `exact`: of few enough bits
   that cutting off loses nothing. */
static inline __m512i take_pair(lanes *first, lanes *second, int exact) {
  int_lanes a = (int_lanes)*first, b = (int_lanes)*second;
  if (!exact) a += 0x8000, b += 0x8000;
  a &= (int32_t)0xffff0000, b &= (int32_t)0xffff0000;
  *first -= (lanes)a;
  *second -= (lanes)b;
  return _mm512_or_si512(_mm512_srli_epi32((__m512i)a, 16), (__m512i)b);
}

/* Weights of a panel, (n, LANES), as tiles: of each STEP inputs the upper halves, and the lower ones; in a line two inputs
   of each output. Returns: whether any lower half is not 0. */
static inline __attribute__((always_inline)) int split_panel(uint16_t *to, lanes *from, int n, int exact) {
  __m512i any = _mm512_setzero_si512();
  for (int k = n; k % STEP; k++) from[k] = (lanes){0};
  for (int k = 0; k < n; k += STEP, to += TILE)
    for (int i = 0; i < STEP; i += 2, to += 2 * LANES) {
      lanes first = from[k + i], second = from[k + i + 1];
      _mm512_storeu_si512(to, take_pair(&first, &second, exact));
      __m512i lower = take_pair(&first, &second, exact);
      _mm512_storeu_si512(to + TILE, lower);
      any = _mm512_or_si512(any, lower);
    }
  return _mm512_test_epi32_mask(any, _mm512_set1_epi32(0x7fff7fff)) != 0;
}

/* sums += 16 or 32 rows of x times two panels over n inputs; `next` numbers of x are between rows 0 and 16. Meanwhile the
   `bytes` of weights for each STEP that come next are asked of memory. */
static inline __attribute__((always_inline)) void by_tiles(float *sums, const uint16_t *x, size_t next,
                                                           const uint16_t *weights, int n, int lower, int both,
                                                           const uint8_t *ahead, size_t bytes) {
  enum { LINE = 2 * LANES * sizeof(float) };
  _tile_loadd(0, sums, LINE);
  _tile_loadd(1, sums + LANES, LINE);
  if (both) {
    _tile_loadd(2, sums + SUMS, LINE);
    _tile_loadd(3, sums + SUMS + LANES, LINE);
  }
#define MULTIPLY(AT)                                           \
  _tile_loadd(6, AT, TILE_BYTES);                              \
  _tile_dpbf16ps(0, 6, 4);                                     \
  _tile_dpbf16ps(1, 6, 5);                                     \
  if (both) {                                                  \
    _tile_loadd(7, AT + next, TILE_BYTES);                     \
    _tile_dpbf16ps(2, 7, 4);                                   \
    _tile_dpbf16ps(3, 7, 5);                                   \
  }
  for (int k = 0; k < n; k += STEP, x += 2 * TILE, weights += 2 * TILE) {
    _tile_loadd(4, weights, TILE_BYTES);
    _tile_loadd(5, weights + PANEL, TILE_BYTES);
    for (size_t i = 0; i < bytes; i += 64) __builtin_prefetch(ahead + i, 0, 2);
    ahead += bytes;
    MULTIPLY(x + TILE)
    MULTIPLY(x)
    if (lower) { /* x's upper half is still there */
      _tile_loadd(4, weights + TILE, TILE_BYTES);
      _tile_loadd(5, weights + PANEL + TILE, TILE_BYTES);
      _tile_dpbf16ps(0, 6, 4);
      _tile_dpbf16ps(1, 6, 5);
      if (both) {
        _tile_dpbf16ps(2, 7, 4);
        _tile_dpbf16ps(3, 7, 5);
      }
    }
  }
#undef MULTIPLY
  _tile_stored(0, sums, LINE);
  _tile_stored(1, sums + LANES, LINE);
  if (both) {
    _tile_stored(2, sums + SUMS, LINE);
    _tile_stored(3, sums + SUMS + LANES, LINE);
  }
}

/* A product, and how its rows and sums lie. */
typedef struct {
  float *y;
  const uint16_t *x; /* 16 rows after 16 rows; in each the tiles of its inputs */
  const uint8_t *weights;
  const float *bias;
  form_t form;
  int rows, wide;
} tiled_t;

/* All rows times panels `first` to `end`. sums: (pairs of panels, 16s of rows, 16, 2 LANES). */
static void some_panels(const tiled_t *p, int first, int end, float *sums) {
  lanes floats[DEPTH] __attribute__((aligned(64)));
  uint16_t pairs[2 * PANEL] __attribute__((aligned(64)));
  int groups = (p->rows + TILE_ROWS - 1) / TILE_ROWS, rest = p->rows - (groups - 1) * TILE_ROWS;
  size_t next = (size_t)(p->form.n + STEP - 1) / STEP * 2 * TILE;
  memset(pairs, 0, sizeof pairs); /* there may be no second panel */
  memset(sums, 0, (size_t)(end - first + 1) / 2 * groups * SUMS * sizeof(float));
  const uint8_t *weights = p->weights;
  block_t block = {.form = p->form};
  for (block.start = 0; block.start < p->form.n; block.start = block.end) {
    block.end = p->form.n - block.start < DEPTH ? p->form.n : block.start + DEPTH;
    block.size = panel_bytes(p->form, block.start, block.end);
    int n = block.end - block.start;
    float *to = sums;
    for (int panel = first; panel < end; panel += 2) {
      int lower = 0;
      for (int i = 0; i < 2 && panel + i < end; i++) {
        widen_panel(floats, weights + (panel + i) * block.size, &block);
        lower |= p->form.bits == 16 ? split_panel(pairs + i * PANEL, floats, n, 1)
                                    : split_panel(pairs + i * PANEL, floats, n, 0);
      }
      settle(pairs);
      const uint8_t *ahead = weights + (panel + 2) * block.size;
      size_t bytes = 2 * block.size * STEP / n;
      const uint16_t *x = p->x + (size_t)block.start / STEP * 2 * TILE;
      for (int g = 0; g < groups; g += 2, to += 2 * SUMS, x += 2 * next) {
        int last = g + 2 >= groups, both = g + 1 < groups;
        if (last && rest < TILE_ROWS) lay_out_tiles(both ? TILE_ROWS : rest, both ? rest : 0);
        if (lower && both) by_tiles(to, x, next, pairs, n, 1, 1, ahead, g ? 0 : bytes);
        if (lower && !both) by_tiles(to, x, next, pairs, n, 1, 0, ahead, g ? 0 : bytes);
        if (!lower && both) by_tiles(to, x, next, pairs, n, 0, 1, ahead, g ? 0 : bytes);
        if (!lower && !both) by_tiles(to, x, next, pairs, n, 0, 0, ahead, g ? 0 : bytes);
        if (last && rest < TILE_ROWS && groups > 2) lay_out_tiles(TILE_ROWS, TILE_ROWS);
      }
      if (groups % 2) to -= SUMS;
    }
    weights += (size_t)(p->wide / LANES) * block.size;
  }
  for (int panel = first; panel < end; panel++)
    for (int t = 0; t < p->rows; t++) {
      size_t at = ((size_t)(panel - first) / 2 * groups * TILE_ROWS + t) * 2 + (panel - first) % 2;
      lanes sum = load(sums + at * LANES);
      if (p->bias) sum += load(p->bias + panel * LANES);
      *(lanes *)(p->y + (size_t)t * p->wide + panel * LANES) = sum;
    }
}

/* As `panel_product`. */
void tile_product(float *y, const float *x, const uint8_t *weights, const float *bias, form_t form, int rows, int wide) {
  int groups = (rows + TILE_ROWS - 1) / TILE_ROWS, n = form.n, panels = wide / LANES;
  size_t line = (size_t)(n + STEP - 1) / STEP * 2 * TILE, each = (size_t)groups * SUMS * sizeof(float);
  int most = each < ROOM ? (int)(ROOM / each) * 2 : 2;
  uint16_t *split = room(groups * line * sizeof *split);
  tiled_t product = {y, split, weights, bias, form, rows, wide};
#pragma omp parallel if ((long)rows * wide * n > PARALLEL_FROM)
  {
#pragma omp for schedule(static)
    for (int t = 0; t < rows; t++) split_row(split + t / TILE_ROWS * line + t % TILE_ROWS * STEP, x + (size_t)t * n, n);
    int first = 0, end = 0; /* this thread's panels */
#pragma omp for schedule(static) nowait
    for (int panel = 0; panel < panels; panel += 2) {
      if (!end) first = panel;
      end = panel + 2 < panels ? panel + 2 : panels;
    }
    if (first < end) {
      float *sums = room((end - first < most ? (end - first + 1) / 2 : most / 2) * each);
      lay_out_tiles(groups > 1 ? TILE_ROWS : rows, TILE_ROWS);
      for (int panel = first; panel < end; panel += most)
        some_panels(&product, panel, end - panel < most ? end : panel + most, sums);
      _tile_release();
      free(sums);
    }
  }
  free(split);
}
#endif
