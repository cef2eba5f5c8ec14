/* The small operations of a decoder step on CPU, fused: what torch does in some 25 calls a layer is done here in 5.

   Compiled on first use by cpu.py with the machine's own C compiler; reference.py holds the same arithmetic in torch.
   float32 activations, rows contiguous unless a stride says otherwise. A row's result depends on nothing but that row:
   every sum runs in one fixed order whatever the batch, so answers do not change with the neighbours. Vectors are 16
   lanes wide in the source; the compiler splits them where registers are narrower. */
#include <math.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#if defined(__x86_64__)
#include <immintrin.h>
#endif

typedef float lanes __attribute__((vector_size(64), aligned(4)));
typedef int32_t int_lanes __attribute__((vector_size(64), aligned(4)));
typedef int8_t signed_bytes __attribute__((vector_size(16), aligned(1)));
enum { LANES = 16 };
#if defined(__AVX512F__)
enum { TILE_ROWS = 4, TILE_OUTS = 4 }; /* sums that stay in registers */
#else
enum { TILE_ROWS = 2, TILE_OUTS = 2 };
#endif
enum { F32 = 0, BF16 = 1, INT8 = 2 }; /* forms of the KV cache */
enum { PARALLEL_FROM = 1 << 16 };      /* multiply-adds below which waking a thread costs more than it saves */

static inline lanes load(const float *p) { return *(const lanes *)p; }

static inline float total(lanes v) {
#if defined(__AVX512F__)
  return _mm512_reduce_add_ps((__m512)v); /* by halves, as below */
#else
  float s[LANES];
  memcpy(s, &v, sizeof v);
  for (int width = LANES / 2; width; width /= 2)
    for (int i = 0; i < width; i++) s[i] += s[i + width];
  return s[0];
#endif
}

/* The first `count` of 16 numbers, the rest filled up. */
static inline lanes load_some(const float *p, int count, float filling) {
  float s[LANES];
  for (int i = 0; i < LANES; i++) s[i] = i < count ? p[i] : filling;
  return load(s);
}

static inline lanes choose(int_lanes where, lanes yes, lanes no) {
  return (lanes)(((int_lanes)yes & where) | ((int_lanes)no & ~where));
}

static inline float dot(const float *a, const float *b, int n) {
  lanes even = {0}, odd = {0};
  int i = 0;
  for (; i + 2 * LANES <= n; i += 2 * LANES) {
    even += load(a + i) * load(b + i);
    odd += load(a + i + LANES) * load(b + i + LANES);
  }
  for (; i + LANES <= n; i += LANES) even += load(a + i) * load(b + i);
  float sum = total(even + odd);
  for (; i < n; i++) sum += a[i] * b[i];
  return sum;
}

/* e**x to 2e-7 relative: 2**n * e**r, |r| <= ln 2 / 2 (Cephes expf polynomial). Below -87 it stays e**-87; NaN is NaN.
   Adding and taking away 1.5 * 2**23 rounds to a whole number, which then stands in the low bits. */
static inline lanes exponential(lanes x) {
  x = choose(x < -87.0f, (lanes){0} - 87.0f, x);
  x = choose(x > 88.0f, (lanes){0} + 88.0f, x);
  lanes shifted = x * 1.44269504f + 12582912.0f, n = shifted - 12582912.0f;
  lanes r = x - n * 0.693359375f + n * 2.12194440e-4f;
  lanes p = r * 1.9875691500e-4f + 1.3981999507e-3f;
  p = p * r + 8.3334519073e-3f;
  p = p * r + 4.1665795894e-2f;
  p = p * r + 1.6666665459e-1f;
  p = p * r + 5.0000001201e-1f;
  p = p * r * r + r + 1.0f;
  return p * (lanes)(((int_lanes)shifted - 0x4b400000 + 127) << 23);
}

static inline float half_to_float(uint16_t h) {
  _Float16 f;
  memcpy(&f, &h, 2);
  return (float)f;
}

/* 16 numbers of a narrow type as floats. gcc 12 takes __builtin_convertvector apart lane by lane: hence intrinsics. */
static inline lanes from_halves(const void *p) {
  lanes wide;
#if defined(__AVX512F__)
  wide = (lanes)_mm512_cvtph_ps(_mm256_loadu_si256(p));
#elif defined(__F16C__) && defined(__AVX2__)
  __m256 low = _mm256_cvtph_ps(_mm_loadu_si128(p)), high = _mm256_cvtph_ps(_mm_loadu_si128((const __m128i *)p + 1));
  memcpy(&wide, &low, 32);
  memcpy((char *)&wide + 32, &high, 32);
#else
  for (int i = 0; i < LANES; i++) wide[i] = half_to_float(((const uint16_t *)p)[i]);
#endif
  return wide;
}

static inline lanes from_bytes(signed_bytes codes) {
  lanes wide;
#if defined(__AVX512F__)
  wide = (lanes)_mm512_cvtepi32_ps(_mm512_cvtepi8_epi32((__m128i)codes));
#elif defined(__AVX2__)
  __m128i all = (__m128i)codes;
  __m256 low = _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(all));
  __m256 high = _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_srli_si128(all, 8)));
  memcpy(&wide, &low, 32);
  memcpy((char *)&wide + 32, &high, 32);
#else
  for (int i = 0; i < LANES; i++) wide[i] = (float)codes[i];
#endif
  return wide;
}

/* ---- norms ---- */

static void norm_row(float *out, const float *x, const float *weight, float eps, int n) {
  float scale = 1.0f / sqrtf(dot(x, x, n) / (float)n + eps);
  for (int i = 0; i < n; i++) out[i] = x[i] * scale * weight[i];
}

void rms_norm(float *out, const float *x, const float *weight, float eps, int rows, int n) {
  for (int t = 0; t < rows; t++) norm_row(out + (size_t)t * n, x + (size_t)t * n, weight, eps, n);
}

/* x += delta; out = norm(x) */
void add_rms_norm(float *out, float *x, const float *delta, const float *weight, float eps, int rows, int n) {
#pragma omp parallel for if ((long)rows * n > PARALLEL_FROM)
  for (int t = 0; t < rows; t++) {
    float *row = x + (size_t)t * n;
    const float *more = delta + (size_t)t * n;
    for (int i = 0; i < n; i++) row[i] += more[i];
    norm_row(out + (size_t)t * n, row, weight, eps, n);
  }
}

/* ---- gate ---- */

void silu_mul(float *out, const float *gate_up, int rows, int n) {
#pragma omp parallel for if ((long)rows * n > PARALLEL_FROM)
  for (int t = 0; t < rows; t++) {
    const float *gate = gate_up + (size_t)t * 2 * n, *up = gate + n;
    float *row = out + (size_t)t * n;
    int i = 0;
    for (; i + LANES <= n; i += LANES)
      *(lanes *)(row + i) = load(gate + i) / (1.0f + exponential(-load(gate + i))) * load(up + i);
    if (i < n) {
      lanes rest = load_some(gate + i, n - i, 0);
      rest = rest / (1.0f + exponential(-rest)) * load_some(up + i, n - i, 0);
      memcpy(row + i, &rest, (size_t)(n - i) * sizeof(float));
    }
  }
}

/* ---- rotary positions and the KV cache ---- */

typedef struct {
  int kind, block_size, kv_heads, dim;
  void *keys, *values;             /* (blocks, block_size, kv_heads, dim) of one layer */
  float *key_scale, *value_scale;  /* (blocks, block_size, kv_heads), INT8 alone */
} cache_t;

static void put(const cache_t *c, void *to, float *scale, size_t at, const float *row) {
  int dim = c->dim;
  if (c->kind == F32) {
    memcpy((float *)to + at * dim, row, (size_t)dim * 4);
  } else if (c->kind == BF16) {
    uint16_t *p = (uint16_t *)to + at * dim;
    for (int i = 0; i < dim; i++) {
      uint32_t bits;
      memcpy(&bits, row + i, 4);
      p[i] = row[i] != row[i] ? 0x7fc0 : (uint16_t)((bits + 0x7fff + ((bits >> 16) & 1)) >> 16);
    }
  } else {
    float peak = 0;
    for (int i = 0; i < dim; i++) peak = fabsf(row[i]) > peak ? fabsf(row[i]) : peak;
    float unit = peak > 0 ? peak / 127.0f : 1.0f, back = 1.0f / unit;
    int8_t *p = (int8_t *)to + at * dim;
    for (int i = 0; i < dim; i++) p[i] = (int8_t)lrintf(row[i] * back);
    scale[at] = unit;
  }
}

/* Numbers `from` to `from + count` of one row of the cache, in `room` unless they are floats already. */
static inline const float *get(const cache_t *c, const void *rows, const float *scale, size_t at, int from, int count,
                               float *room) {
  size_t start = at * c->dim + from;
  if (c->kind == F32) return (const float *)rows + start;
  if (c->kind == BF16) {
    const uint16_t *p = (const uint16_t *)rows + start;
    for (int i = 0; i < count; i++) {
      uint32_t bits = (uint32_t)p[i] << 16;
      memcpy(room + i, &bits, 4);
    }
  } else {
    const int8_t *p = (const int8_t *)rows + start;
    float unit = scale[at];
    int i = 0;
    for (; i + LANES <= count; i += LANES) {
      signed_bytes some;
      memcpy(&some, p + i, sizeof some);
      *(lanes *)(room + i) = from_bytes(some) * unit;
    }
    for (; i < count; i++) room[i] = (float)p[i] * unit;
  }
  return room;
}

/* qkv (rows, heads + 2 kv_heads, dim): turn queries and keys in place, write keys and values to their slots.
   cos, sin (rows, half): the first 2*half numbers of a head turn, the rest stay. */
void rope_store(float *qkv, const float *cos, const float *sin, const int64_t *slots, const cache_t *c, int rows,
                int heads, int half) {
  int dim = c->dim, kv = c->kv_heads, all = heads + 2 * kv;
#pragma omp parallel for if ((long)rows * all * dim > PARALLEL_FROM)
  for (int t = 0; t < rows; t++) {
    float *row = qkv + (size_t)t * all * dim;
    const float *co = cos + (size_t)t * half, *si = sin + (size_t)t * half;
    for (int h = 0; h < heads + kv; h++) {
      float *a = row + (size_t)h * dim, *b = a + half;
      for (int i = 0; i < half; i++) {
        float x = a[i], y = b[i];
        a[i] = x * co[i] - y * si[i];
        b[i] = y * co[i] + x * si[i];
      }
    }
    for (int h = 0; h < kv; h++) {
      size_t at = (size_t)slots[t] * kv + h;
      put(c, c->keys, c->key_scale, at, row + (size_t)(heads + h) * dim);
      put(c, c->values, c->value_scale, at, row + (size_t)(heads + kv + h) * dim);
    }
  }
}

/* ---- attention over pages: one query row at a time ---- */

typedef struct {
  const cache_t *cache;
  const int64_t *table;
  int first, context, kv_head; /* tokens `first` to `context` are looked at */
} view_t;

/* Where token p stands in the cache; consecutive ones of a page follow each other at steps of kv_heads. */
static inline size_t place(const view_t *v, int p) {
  int size = v->cache->block_size;
  return ((size_t)v->table[p / size] * size + p % size) * v->cache->kv_heads + v->kv_head;
}

static inline int page_end(const view_t *v, int p) {
  int size = v->cache->block_size, end = (p / size + 1) * size;
  return end < v->context ? end : v->context;
}

/* Scores to shares of one, in place. */
static void soften(float *s, int count, float softcap) {
  if (softcap > 0)
    for (int j = 0; j < count; j++) s[j] = softcap * tanhf(s[j] / softcap);
  lanes peaks = load_some(s, count < LANES ? count : LANES, -INFINITY), sums = {0};
  int j = LANES;
  for (; j + LANES <= count; j += LANES) peaks = choose(load(s + j) > peaks, load(s + j), peaks);
  float peak = -INFINITY;
  for (int i = 0; i < LANES; i++) peak = peaks[i] > peak ? peaks[i] : peak;
  for (; j < count; j++) peak = s[j] > peak ? s[j] : peak;
  for (j = 0; j + LANES <= count; j += LANES) {
    lanes e = exponential(load(s + j) - peak);
    *(lanes *)(s + j) = e;
    sums += e;
  }
  if (j < count) {
    lanes e = exponential(load_some(s + j, count - j, 0) - peak);
    memcpy(s + j, &e, (size_t)(count - j) * sizeof(float));
    sums += load_some(s + j, count - j, 0);
  }
  float share = 1.0f / total(sums);
  for (j = 0; j < count; j++) s[j] *= share;
}

/* out += shares times values, for `groups` heads and `width` lanes from number `from` on; the sums stay in registers. */
static inline __attribute__((always_inline)) void weigh(float *out, const float *shares, const view_t *v, int from,
                                                        int groups, int width, float *room) {
  const cache_t *c = v->cache;
  lanes sums[4][4] = {{{0}}};
  int count = v->context - v->first;
  for (int p = v->first; p < v->context;) {
    size_t at = place(v, p);
    for (int end = page_end(v, p); p < end; p++, at += c->kv_heads) {
      const float *value = get(c, c->values, c->value_scale, at, from, width * LANES, room);
      for (int g = 0; g < groups; g++)
        for (int w = 0; w < width; w++)
          sums[g][w] += shares[(size_t)g * count + p - v->first] * load(value + w * LANES);
    }
  }
  for (int g = 0; g < groups; g++)
    for (int w = 0; w < width; w++) *(lanes *)(out + (size_t)g * c->dim + from + w * LANES) = sums[g][w];
}

static void attend_head(float *out, const float *query, const view_t *v, int group, float scale, float softcap,
                        float *scores, float *room) {
  const cache_t *c = v->cache;
  int dim = c->dim, count = v->context - v->first;
  for (int p = v->first; p < v->context;) {
    size_t at = place(v, p);
    for (int end = page_end(v, p); p < end; p++, at += c->kv_heads) {
      const float *key = get(c, c->keys, c->key_scale, at, 0, dim, room);
      for (int g = 0; g < group; g++)
        scores[(size_t)g * count + p - v->first] = dot(query + (size_t)g * dim, key, dim) * scale;
    }
  }
  for (int g = 0; g < group; g++) soften(scores + (size_t)g * count, count, softcap);
  int from = 0;
  for (int width; (width = dim - from >= 4 * LANES ? 4 : dim - from >= LANES ? 1 : 0); from += width * LANES) {
    int g = 0;
    for (int some; g < group; g += some) {
      float *to = out + (size_t)g * dim;
      const float *shares = scores + (size_t)g * count;
      some = group - g >= 4 ? 4 : group - g >= 2 ? 2 : 1;
      if (width == 4)
        some == 4   ? weigh(to, shares, v, from, 4, 4, room)
        : some == 2 ? weigh(to, shares, v, from, 2, 4, room)
                    : weigh(to, shares, v, from, 1, 4, room);
      else
        for (int k = 0; k < some; k++) weigh(to + (size_t)k * dim, shares + (size_t)k * count, v, from, 1, 1, room);
    }
  }
  for (int g = 0; from < dim && g < group; g++) { /* what is left of a head that is no whole number of lanes */
    float *o = out + (size_t)g * dim + from;
    memset(o, 0, (size_t)(dim - from) * sizeof(float));
    for (int p = v->first; p < v->context; p++) {
      const float *value = get(c, c->values, c->value_scale, place(v, p), from, dim - from, room);
      for (int i = 0; i < dim - from; i++) o[i] += scores[(size_t)g * count + p - v->first] * value[i];
    }
  }
}

/* query: row t begins at query + t * stride, (heads, dim). tables (sequences, pages); row t looks through table
   owners[t] at its first contexts[t] tokens, or the last `window` of them if window > 0. out (rows, heads, dim). */
void attend(float *out, const float *query, int64_t stride, const cache_t *c, const int64_t *tables, int pages,
            const int64_t *owners, const int64_t *contexts, int rows, int heads, float scale, float softcap,
            int window) {
  int dim = c->dim, kv = c->kv_heads, group = heads / kv;
  int64_t longest = 0, work = 0;
  for (int t = 0; t < rows; t++) {
    longest = contexts[t] > longest ? contexts[t] : longest;
    work += contexts[t] * heads * dim;
  }
#pragma omp parallel if (work > PARALLEL_FROM)
  {
    float *scores = malloc(((size_t)longest * group + dim) * sizeof(float));
#pragma omp for schedule(dynamic)
    for (int i = 0; i < rows * kv; i++) {
      int t = i / kv, h = i % kv, context = (int)contexts[t];
      int first = window > 0 && context > window ? context - window : 0;
      view_t view = {c, tables + owners[t] * pages, first, context, h};
      attend_head(out + ((size_t)t * heads + h * group) * dim, query + t * stride + (size_t)h * group * dim, &view,
                  group, scale, softcap, scores, scores + (size_t)longest * group);
    }
    free(scores);
  }
}

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

/* One row of weights as floats: scale * (code - zero) in groups of inputs; bits 16 is float16 itself. */
static inline void decode_row(float *to, const uint8_t *codes, const uint16_t *scale, const uint16_t *zero, int bits,
                              int group, int n) {
  if (bits == 16) {
    int i = 0;
    for (; i + LANES <= n; i += LANES) *(lanes *)(to + i) = from_halves(codes + 2 * i);
    for (; i < n; i++) to[i] = half_to_float(((const uint16_t *)codes)[i]);
    return;
  }
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
  int groups = bits == 16 ? 0 : n / group;
  size_t bytes = (size_t)n * bits / 8;
#pragma omp parallel for if ((long)outs * n > PARALLEL_FROM)
  for (int o = 0; o < outs; o++)
    decode_row(to + (size_t)o * n, codes + (size_t)o * bytes, scale + (size_t)o * groups,
               zero ? zero + (size_t)o * groups : NULL, bits, group, n);
}

/* y (rows, outs) = x (rows, n) times weights (outs, n) as they are stored, in float32. */
void weight_only(float *y, const float *x, const uint8_t *codes, const uint16_t *scale, const uint16_t *zero,
                 const float *bias, int bits, int group, int rows, int outs, int n) {
  int groups = bits == 16 ? 0 : n / group;
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
