/* Products of integers: rows of activations as codes, 8-bit weights, sums in 32 bits. Exact, so that neither the size of
   the batch nor the way it is cut can change a result. Wants VNNI; AMX multiplies several rows at once. */
#include "tiles.h"
#if defined(TILES)
#include <sys/syscall.h>
#include <unistd.h>
#endif

enum { OFFSET = 128 }; /* the processor multiplies unsigned by signed bytes: codes of activations are raised by it */

/* ---- rows ---- */

/* Rows of x to 8 bits, each by its own largest value: x ~ (codes - OFFSET) * scale, `step` bytes a row. A row that holds
   a NaN gets a NaN scale. */
void quantize_rows(uint8_t *codes, float *scale, const float *x, int rows, int n, int step) {
#pragma omp parallel for if ((long)rows * n > PARALLEL_FROM)
  for (int t = 0; t < rows; t++) {
    const float *row = x + (size_t)t * n;
    uint8_t *to = codes + (size_t)t * step;
    int32_t bits = peak_bits(row, n);
    float peak;
    memcpy(&peak, &bits, 4);
    float back = peak > 0 ? 127.0f / peak : 0.0f;
    for (int i = 0; i < n; i++) to[i] = (uint8_t)((int32_t)rintf(row[i] * back) + OFFSET);
    memset(to + n, OFFSET, step - n);
    scale[t] = peak / 127.0f;
  }
}

/* Rows of x to 16 bits in two planes: x ~ (256 * high + low) * scale. codes: the high rows, then the low ones, each
   OFFSET above its number. */
void split_rows(uint8_t *codes, float *scale, const float *x, int rows, int n, int step) {
#pragma omp parallel for if ((long)rows * n > PARALLEL_FROM)
  for (int t = 0; t < rows; t++) {
    const float *row = x + (size_t)t * n;
    uint8_t *high = codes + (size_t)t * step, *low = codes + (size_t)(rows + t) * step;
    int32_t bits = peak_bits(row, n);
    float peak;
    memcpy(&peak, &bits, 4);
    float back = peak > 0 ? 32639.0f / peak : 0.0f;
    for (int i = 0; i < n; i++) {
      int32_t code = (int32_t)rintf(row[i] * back), upper = (code + 128) >> 8;
      high[i] = (uint8_t)(upper + OFFSET);
      low[i] = (uint8_t)(code - 256 * upper + OFFSET);
    }
    memset(high + n, OFFSET, step - n);
    memset(low + n, OFFSET, step - n);
    scale[t] = peak / 32639.0f;
  }
}

/* What the planes' products come to, in the first rows of `a`: both planes of x times the high weights stand in `a`
   (2 rows, outs), the high plane times the low weights in `b`. */
void join_planes(float *a, const float *b, const float *scale, const float *bias, int rows, int outs) {
#pragma omp parallel for if ((long)rows * outs > PARALLEL_FROM)
  for (int t = 0; t < rows; t++) {
    float *to = a + (size_t)t * outs;
    const float *low = a + (size_t)(rows + t) * outs, *more = b + (size_t)t * outs;
    for (int o = 0; o < outs; o++) to[o] = (to[o] + low[o] * (1.0f / 256) + more[o]) * scale[t];
    for (int o = 0; bias && o < outs; o++) to[o] += bias[o];
  }
}

#if defined(TILES)
/* Whether the kernel lets this process use tiles. Source: Linux, Documentation/arch/x86/xstate.rst, read 2026-11. */
int may_use_tiles;
__attribute__((constructor)) static void ask_for_tiles(void) {
  enum { REQUEST = 0x1023, TILE_DATA = 18 };
  may_use_tiles = !syscall(SYS_arch_prctl, REQUEST, TILE_DATA);
}
#endif

#if defined(__AVX512VNNI__)
/* ---- products ---- */

enum { FOUR = 4 };          /* inputs that one instruction adds up in each lane */
enum { TILE = 64 };         /* inputs in a row of a tile of AMX: weights and rows are filled up to whole ones */
enum { TOGETHER = 8 };      /* panels that are read side by side: memory is then asked in more places at once */
enum { FEW = 4 };           /* rows up to which VNNI alone is as fast as tiles */
enum { READ_AHEAD = 2048 }; /* bytes of a panel */

/* Weights (outs, n) as panels of LANES outputs, `step` inputs each: of FOUR inputs those of all outputs, then of the next
   FOUR. An even number of panels. `sums` are OFFSET times those of each output's weights. */
void pack_bytes(int8_t *to, int32_t *sums, const int8_t *from, int outs, int n, int step) {
  int wide = (outs + 2 * LANES - 1) / (2 * LANES) * 2 * LANES;
  for (int o = 0; o < wide; o++) {
    int8_t *at = to + (size_t)(o / LANES) * LANES * step + o % LANES * FOUR;
    int32_t sum = 0;
    for (int k = 0; k < step; k++) {
      int8_t code = o < outs && k < n ? from[(size_t)o * n + k] : 0;
      at[(size_t)(k / FOUR) * LANES * FOUR + k % FOUR] = code;
      sum += code;
    }
    sums[o] = sum * OFFSET;
  }
}

typedef struct {
  float *y;
  const uint8_t *x;
  const float *x_scale; /* none: 1 */
  const int8_t *weights;
  const int32_t *sums;
  const float *scale, *bias;
  int rows, outs, step;
} product_t;

/* Sums of some rows and one panel as what they mean. One function for all ways to them: they must agree to the bit. */
static __attribute__((noinline)) void deliver(const product_t *p, const int32_t (*sums)[LANES], int row, int rows,
                                              int panel) {
  int first = panel * LANES, few = p->outs - first < LANES ? p->outs - first : LANES;
  if (few <= 0) return; /* the last of an even number */
  lanes scale = load_some(p->scale + first, few, 0.0f), bias = {0};
  if (p->bias) bias = load_some(p->bias + first, few, 0.0f);
  __m512i raised = _mm512_loadu_si512(p->sums + first);
  for (int r = 0; r < rows; r++) {
    lanes out = (lanes)_mm512_cvtepi32_ps(_mm512_sub_epi32(_mm512_loadu_si512(sums[r]), raised)) * scale;
    if (p->x_scale) out *= p->x_scale[row + r];
    if (p->bias) out += bias;
    float *to = p->y + (size_t)(row + r) * p->outs + first;
    if (few == LANES)
      *(lanes *)to = out;
    else
      memcpy(to, &out, few * sizeof(float));
  }
}

/* Some rows times some panels, whose sums stay in registers. */
static inline __attribute__((always_inline)) void by_lanes(const product_t *p, int row, int panel, int rows, int panels) {
  size_t step = p->step, size = step * LANES;
  const uint8_t *x = p->x + row * step;
  const int8_t *weights = p->weights + panel * size;
  __m512i sums[TOGETHER * 2];
#pragma GCC unroll 16
  for (int i = 0; i < rows * panels; i++) sums[i] = _mm512_setzero_si512();
  for (size_t k = 0; k < step; k += FOUR) {
    __m512i four[FEW];
#pragma GCC unroll 16
    for (int r = 0; r < rows; r++) {
      int32_t codes;
      memcpy(&codes, x + r * step + k, sizeof codes);
      four[r] = _mm512_set1_epi32(codes);
    }
#pragma GCC unroll 16
    for (int o = 0; o < panels; o++) {
      const int8_t *at = weights + o * size + k * LANES;
      __builtin_prefetch(at + READ_AHEAD);
      __m512i some = _mm512_loadu_si512(at);
#pragma GCC unroll 16
      for (int r = 0; r < rows; r++) sums[r * panels + o] = _mm512_dpbusd_epi32(sums[r * panels + o], four[r], some);
    }
  }
  for (int o = 0; o < panels; o++) {
    int32_t out[FEW][LANES];
#pragma GCC unroll 16
    for (int r = 0; r < rows; r++) _mm512_storeu_si512(out[r], sums[r * panels + o]);
    deliver(p, out, row, rows, panel + o);
  }
}

/* All rows times at most TOGETHER panels. */
static void panels_by_lanes(const product_t *p, int panel, int panels) {
  int row = 0;
  if (panels == TOGETHER) {
    for (; row + 4 <= p->rows; row += 4) {
      by_lanes(p, row, panel, 4, 4);
      by_lanes(p, row, panel + 4, 4, 4);
    }
    for (; row + 2 <= p->rows; row += 2) by_lanes(p, row, panel, 2, 8);
    for (; row < p->rows; row++) by_lanes(p, row, panel, 1, 8);
  }
  for (; row < p->rows; row++)
    for (int o = 0; o < panels; o++) by_lanes(p, row, panel + o, 1, 1);
}

#if defined(TILES)
/* 16 rows, or 32, times two panels. Rows that nobody asked for are computed and dropped. */
static void by_tiles(const product_t *p, int row, int panel, int both) {
  size_t step = p->step, size = step * LANES;
  const uint8_t *x = p->x + row * step;
  const int8_t *weights = p->weights + panel * size;
  int32_t sums[4][LANES][LANES];
  _tile_zero(0);
  _tile_zero(1);
  _tile_zero(2);
  _tile_zero(3);
  for (size_t k = 0; k < step; k += TILE) {
    const int8_t *at = weights + k * LANES;
    for (int line = 0; line < LANES; line++) {
      __builtin_prefetch(at + READ_AHEAD + line * 64);
      __builtin_prefetch(at + size + READ_AHEAD + line * 64);
    }
    _tile_loadd(4, at, 64);
    _tile_loadd(5, at + size, 64);
    _tile_loadd(6, x + k, step);
    _tile_dpbusd(0, 6, 4);
    _tile_dpbusd(1, 6, 5);
    if (both) {
      _tile_loadd(7, x + LANES * step + k, step);
      _tile_dpbusd(2, 7, 4);
      _tile_dpbusd(3, 7, 5);
    }
  }
  _tile_stored(0, sums[0], 64);
  _tile_stored(1, sums[1], 64);
  if (both) {
    _tile_stored(2, sums[2], 64);
    _tile_stored(3, sums[3], 64);
  }
  for (int i = 0; i < (both ? 4 : 2); i++) {
    int start = row + i / 2 * LANES;
    deliver(p, sums[i], start, p->rows - start < LANES ? p->rows - start : LANES, panel + i % 2);
  }
}
#endif

/* y (rows, outs) = x (rows, step) times weights as `pack_bytes` left them. x ends with so many rows of anything that
   there are 16, 32, ... of them. */
void byte_product(float *y, const uint8_t *x, const float *x_scale, const int8_t *weights, const int32_t *sums,
                  const float *scale, const float *bias, int rows, int outs, int step) {
  product_t product = {y, x, x_scale, weights, sums, scale, bias, rows, outs, step}, *p = &product;
  int panels = (outs + 2 * LANES - 1) / (2 * LANES) * 2;
#pragma omp parallel if ((long)rows * outs * step > PARALLEL_FROM)
  {
#if defined(TILES)
    int tiles = may_use_tiles && rows > FEW;
    if (tiles) lay_out_tiles(LANES, LANES);
#else
    int tiles = 0;
#endif
#pragma omp for schedule(static)
    for (int panel = 0; panel < panels; panel += TOGETHER) {
      int few = panels - panel < TOGETHER ? panels - panel : TOGETHER;
      if (!tiles) panels_by_lanes(p, panel, few);
#if defined(TILES)
      for (int row = 0; tiles && row < rows; row += 2 * LANES)
        for (int o = 0; o < few; o += 2) by_tiles(p, row, panel + o, rows - row > LANES);
#endif
    }
#if defined(TILES)
    if (tiles) _tile_release();
#endif
  }
}
#endif
