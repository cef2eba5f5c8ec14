/* Products with weights that are narrower than the activations: 4 and 8 bits by groups, float16 in panels; and rows of
   activations as codes. In float32; each sum runs in one order, whatever the batch. Compiled with cpu.c. */
#include "lanes.h"

#if defined(__AVX512F__)
enum { TILE_ROWS = 4, TILE_OUTS = 4 }; /* sums that stay in registers */
enum { GROUP = 16 };                   /* the same for panels: rows times panels */
#else
enum { TILE_ROWS = 2, TILE_OUTS = 2 };
enum { GROUP = 4 };
#endif
enum { DEPTH = 256 };  /* inputs at a time: a group of rows then stays in the first cache for all panels */
enum { AHEAD = 2048 }; /* bytes of weights that are asked of memory before they are needed */

/* ---- products with quantized weights ---- */

/* The bits of the largest magnitude in a row: as integers they order like the numbers, and a NaN is above infinity. */
static inline int32_t peak_bits(const float *row, int n) {
  int32_t peak = 0;
  for (int i = 0; i < n; i++) {
    int32_t bits;
    memcpy(&bits, row + i, 4);
    bits &= 0x7fffffff;
    peak = bits > peak ? bits : peak;
  }
  return peak;
}

/* Rows of x to int8, each by its own largest value: x ~ codes * scale. A row that holds a NaN gets a NaN scale. */
void quantize_rows(int8_t *codes, float *scale, const float *x, int rows, int n) {
#pragma omp parallel for if ((long)rows * n > PARALLEL_FROM)
  for (int t = 0; t < rows; t++) {
    const float *row = x + (size_t)t * n;
    int8_t *to = codes + (size_t)t * n;
    int32_t bits = peak_bits(row, n);
    float peak;
    memcpy(&peak, &bits, 4);
    float back = peak > 0 ? 127.0f / peak : 0.0f;
    for (int i = 0; i < n; i++) to[i] = (int8_t)(int32_t)rintf(row[i] * back);
    scale[t] = peak / 127.0f;
  }
}

/* Rows of x to 16 bits in two planes: x ~ (256 * high + low) * scale. codes: the high rows, then the low ones. */
void split_rows(int8_t *codes, float *scale, const float *x, int rows, int n) {
#pragma omp parallel for if ((long)rows * n > PARALLEL_FROM)
  for (int t = 0; t < rows; t++) {
    const float *row = x + (size_t)t * n;
    int8_t *high = codes + (size_t)t * n, *low = codes + (size_t)(rows + t) * n;
    int32_t bits = peak_bits(row, n);
    float peak;
    memcpy(&peak, &bits, 4);
    float back = peak > 0 ? 32639.0f / peak : 0.0f;
    for (int i = 0; i < n; i++) {
      int32_t code = (int32_t)rintf(row[i] * back), upper = (code + 128) >> 8;
      high[i] = (int8_t)upper;
      low[i] = (int8_t)(code - 256 * upper);
    }
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

/* One row of weights as floats: scale * (code - zero) in groups of inputs. */
static inline void decode_row(float *to, const uint8_t *codes, const uint16_t *scale, const uint16_t *zero, int bits,
                              int group, int n) {
  for (int at = 0, g = 0; at < n; at += group, g++) {
    float s = half_to_float(scale[g]), shift = zero ? -half_to_float(zero[g]) * s : 0.0f;
    if (bits == 8) {
      const int8_t *c = (const int8_t *)codes + at;
      int i = 0;
      for (; i + LANES <= group; i += LANES) {
        signed_bytes some;
        memcpy(&some, c + i, sizeof some);
        *(lanes *)(to + at + i) = from_bytes(some) * s + shift;
      }
      for (; i < group; i++) to[at + i] = (float)c[i] * s + shift;
    } else {
      for (int run = at; run < at + group; run += 2 * LANES) { /* 16 bytes: low halves first, then high ones */
        signed_bytes pairs;
        memcpy(&pairs, codes + run / 2, sizeof pairs);
        *(lanes *)(to + run) = from_bytes(pairs & 15) * s + shift;
        *(lanes *)(to + run + LANES) = from_bytes((pairs >> 4) & 15) * s + shift;
      }
    }
  }
}

/* A tile of products: every sum is one chain over n in steps of LANES, so the tile's size cannot change a result. */
static inline __attribute__((always_inline)) void tile(float *y, size_t step, const float *x, const float *weights,
                                                       int rows, int outs, int n) {
  lanes sums[TILE_ROWS][TILE_OUTS] = {{{0}}};
  int i = 0;
  for (; i + LANES <= n; i += LANES)
    for (int t = 0; t < rows; t++)
      for (int o = 0; o < outs; o++) sums[t][o] += load(x + (size_t)t * n + i) * load(weights + (size_t)o * n + i);
  for (int t = 0; t < rows; t++)
    for (int o = 0; o < outs; o++) {
      float sum = total(sums[t][o]);
      for (int j = i; j < n; j++) sum += x[(size_t)t * n + j] * weights[(size_t)o * n + j];
      y[t * step + o] = sum;
    }
}

/* Weights (outs, n) as floats. */
void widen(float *to, const uint8_t *codes, const uint16_t *scale, const uint16_t *zero, int bits, int group, int outs,
           int n) {
  int groups = n / group;
  size_t bytes = (size_t)n * bits / 8;
#pragma omp parallel for if ((long)outs * n > PARALLEL_FROM)
  for (int o = 0; o < outs; o++)
    decode_row(to + (size_t)o * n, codes + (size_t)o * bytes, scale + (size_t)o * groups,
               zero ? zero + (size_t)o * groups : NULL, bits, group, n);
}

/* y (rows, outs) = x (rows, n) times weights (outs, n) as they are stored, in float32. */
void weight_only(float *y, const float *x, const uint8_t *codes, const uint16_t *scale, const uint16_t *zero,
                 const float *bias, int bits, int group, int rows, int outs, int n) {
  int groups = n / group;
  size_t bytes = (size_t)n * bits / 8;
#pragma omp parallel if ((long)rows * outs * n > PARALLEL_FROM)
  {
    float *weights = aligned_alloc(64, (((size_t)TILE_OUTS * n * sizeof(float)) | 63) + 1);
#pragma omp for schedule(static)
    for (int o = 0; o < outs; o += TILE_OUTS) {
      int few = outs - o < TILE_OUTS ? outs - o : TILE_OUTS;
      for (int k = 0; k < few; k++)
        decode_row(weights + (size_t)k * n, codes + (size_t)(o + k) * bytes, scale + (size_t)(o + k) * groups,
                   zero ? zero + (size_t)(o + k) * groups : NULL, bits, group, n);
      float *at = y + o;
      int t = 0;
      if (few == TILE_OUTS) {
        for (; t + TILE_ROWS <= rows; t += TILE_ROWS)
          tile(at + (size_t)t * outs, outs, x + (size_t)t * n, weights, TILE_ROWS, TILE_OUTS, n);
        for (; t < rows; t++) tile(at + (size_t)t * outs, outs, x + (size_t)t * n, weights, 1, TILE_OUTS, n);
      } else {
        for (int k = 0; k < few; k++)
          for (t = 0; t < rows; t++)
            tile(at + (size_t)t * outs + k, outs, x + (size_t)t * n, weights + (size_t)k * n, 1, 1, n);
      }
      for (t = 0; bias && t < rows; t++)
        for (int k = 0; k < few; k++) at[(size_t)t * outs + k] += bias[o + k];
    }
    free(weights);
  }
}

/* ---- products with float16 weights ---- */

/* Weights (outs, n) in the order in which they are read: for each DEPTH of inputs panels of LANES outputs, in a panel
   one input after the other. `to` holds the last panel whole. */
void pack_halves(uint16_t *to, const uint16_t *from, int outs, int n) {
  int wide = (outs + LANES - 1) / LANES * LANES;
  for (int start = 0; start < n; start += DEPTH) {
    int depth = n - start < DEPTH ? n - start : DEPTH;
    for (int o = 0; o < wide; o++) {
      uint16_t *at = to + (size_t)start * wide + (size_t)(o / LANES) * LANES * depth + o % LANES;
      for (int k = 0; k < depth; k++) at[k * LANES] = o < outs ? from[(size_t)o * n + start + k] : 0;
    }
  }
}

/* y (rows, step) += x times some panels over `depth` inputs; x is (depth, rows), of which the first `real` are somebody's.
   Every sum is one chain over the inputs, so neither rows nor panels at a time can change a result. */
static inline __attribute__((always_inline)) void panels_of(float *y, size_t step, const float *x,
                                                            const uint16_t *weights, int depth, int real, int rows,
                                                            int panels) {
  lanes sums[GROUP];
#pragma GCC unroll 16
  for (int i = 0; i < rows * panels; i++)
    sums[i] = i / panels < real ? load(y + i / panels * step + i % panels * LANES) : (lanes){0};
  for (int k = 0; k < depth; k++) {
    lanes wide[GROUP];
#pragma GCC unroll 16
    for (int p = 0; p < panels; p++) {
      const uint16_t *at = weights + ((size_t)p * depth + k) * LANES;
      __builtin_prefetch((const char *)at + AHEAD);
      wide[p] = from_halves(at);
    }
#pragma GCC unroll 16
    for (int i = 0; i < rows * panels; i++) sums[i] += x[k * rows + i / panels] * wide[i % panels];
  }
#pragma GCC unroll 16
  for (int i = 0; i < rows * panels; i++)
    if (i / panels < real) *(lanes *)(y + i / panels * step + i % panels * LANES) = sums[i];
}

static void panels_for(float *y, size_t step, const float *x, const uint16_t *weights, int depth, int real, int rows,
                       int panels) {
  switch (rows) { /* fewer rows leave registers for more panels: memory is then read in more places at once */
#define ROWS(R)                                                                              \
  case R:                                                                                    \
    if (panels == GROUP / R) return panels_of(y, step, x, weights, depth, real, R, GROUP / R); \
    for (int p = 0; p < panels; p++)                                                         \
      panels_of(y + p * LANES, step, x, weights + (size_t)p * depth * LANES, depth, real, R, 1); \
    return;
    ROWS(1) ROWS(2) ROWS(4)
#if defined(__AVX512F__)
    ROWS(8) ROWS(16)
#endif
#undef ROWS
  }
}

/* y (rows, wide) = x (rows, n) times weights as `pack_halves` left them, plus the bias (wide) if there is one; `wide` is
   a whole number of panels. In float32 throughout. */
void half_product(float *y, const float *x, const uint16_t *weights, const float *bias, int rows, int wide, int n) {
  int groups = (rows + GROUP - 1) / GROUP, rest = rows - (groups - 1) * GROUP, width = 1;
  while (width < rest) width *= 2; /* of the last group */
  float *turned = rows == 1 ? NULL : aligned_alloc(64, (size_t)groups * GROUP * n * sizeof(float));
  int together = groups > 1 ? 1 : GROUP / width;
#pragma omp parallel if ((long)rows * wide * n > PARALLEL_FROM)
  {
#pragma omp for schedule(static)
    for (int t = 0; t < rows; t++)
      for (int o = 0; o < wide; o += LANES)
        *(lanes *)(y + (size_t)t * wide + o) = bias ? load(bias + o) : (lanes){0};
#pragma omp for schedule(static)
    for (int g = 0; g < (turned ? groups : 0); g++) {
      int own = g < groups - 1 ? GROUP : width, real = g < groups - 1 ? GROUP : rest;
      float *to = turned + (size_t)g * GROUP * n;
      for (int t = 0; t < own; t++)
        for (int k = 0; k < n; k++) to[k * own + t] = t < real ? x[(size_t)(g * GROUP + t) * n + k] : 0.0f;
    }
    for (int start = 0; start < n; start += DEPTH) {
      int depth = n - start < DEPTH ? n - start : DEPTH;
      /* Each thread keeps to its panels, so it need not wait for the others between depths. */
#pragma omp for schedule(static) nowait
      for (int o = 0; o < wide; o += together * LANES) {
        int panels = (wide - o) / LANES < together ? (wide - o) / LANES : together;
        const uint16_t *from = weights + (size_t)start * wide + (size_t)o * depth;
        for (int g = 0; g < groups; g++) {
          int own = g < groups - 1 ? GROUP : width, real = g < groups - 1 ? GROUP : rest;
          const float *rows_of = (turned ? turned : x) + (size_t)g * GROUP * n + (size_t)start * own;
          panels_for(y + (size_t)g * GROUP * wide + o, wide, rows_of, from, depth, real, own, panels);
        }
      }
    }
  }
  free(turned);
}
