/* The small operations of a decoder step on CPU, fused: what torch does in some 25 calls a layer is done here in 5.

   Compiled on first use by cpu.py with the machine's own C compiler; reference.py holds the same arithmetic in torch.
   float32 activations, rows contiguous unless a stride says otherwise. A row's result depends on nothing but that row:
   every sum runs in one fixed order whatever the batch, so answers do not change with the neighbours. */
#include "lanes.h"

enum { F32 = 0, BF16 = 1, INT8 = 2 }; /* forms of the KV cache */

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
    int32_t bits = peak_bits(row, dim);
    float peak;
    memcpy(&peak, &bits, 4);
    float unit = peak == 0 ? 1.0f : peak / 127.0f, back = 1.0f / unit; /* a NaN stays one: codes cannot hold it */
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
    float *scores = room(((size_t)longest * group + dim) * sizeof(float));
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
