/* Vectors of 16 floats, what they are made from and what becomes of them: for all of them.

   They are 16 lanes wide in the source; the compiler splits them where registers are narrower. A sum of lanes always
   runs in the same order. */
#pragma once
#include <math.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#if defined(__x86_64__)
#include <immintrin.h>
#endif

typedef float lanes __attribute__((vector_size(64), aligned(4)));
typedef int32_t int_lanes __attribute__((vector_size(64), aligned(4)));
typedef int8_t signed_bytes __attribute__((vector_size(16), aligned(1)));
enum { LANES = 16 };
enum { PARALLEL_FROM = 1 << 16 }; /* multiply-adds below which waking a thread costs more than it saves */

/* Room for `bytes`, from a border of 64 on. To be given back by `free`. */
static inline void *room(size_t bytes) {
  void *made = aligned_alloc(64, (bytes + 63) / 64 * 64);
  if (!made) {
    fprintf(stderr, "out of memory: no %zu bytes for a product or for attention\n", bytes);
    abort();
  }
  return made;
}

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

/* a * b + c with one rounding, or two, but the same wherever it stands: the compiler makes its own choice at each place
   where it finds a product and a sum. */
static inline lanes fused(lanes a, lanes b, lanes c) {
#if defined(__AVX512F__)
  return (lanes)_mm512_fmadd_ps((__m512)a, (__m512)b, (__m512)c);
#elif defined(__FMA__)
  __m256 x[2], y[2], z[2];
  memcpy(x, &a, sizeof a);
  memcpy(y, &b, sizeof b);
  memcpy(z, &c, sizeof c);
  for (int half = 0; half < 2; half++) z[half] = _mm256_fmadd_ps(x[half], y[half], z[half]);
  memcpy(&c, z, sizeof c);
  return c;
#else
  lanes product = a * b;
  __asm__("" : "+m"(product)); /* hides from the compiler that a sum follows */
  return product + c;
#endif
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

/* The four bits of each number that begin at bit `at`, less 8. */
static inline lanes from_nibbles(int_lanes words, int at) {
#if defined(__AVX512F__)
  /* The table is asked with the lowest four bits of each index. */
  const __m512 table = _mm512_setr_ps(-8, -7, -6, -5, -4, -3, -2, -1, 0, 1, 2, 3, 4, 5, 6, 7);
  return (lanes)_mm512_permutexvar_ps(_mm512_srli_epi32((__m512i)words, at), table);
#else
  int_lanes codes = ((words >> at) & 15) - 8;
  lanes wide;
#if defined(__AVX2__)
  __m256i halves[2];
  memcpy(halves, &codes, sizeof codes);
  __m256 low = _mm256_cvtepi32_ps(halves[0]), high = _mm256_cvtepi32_ps(halves[1]);
  memcpy(&wide, &low, 32);
  memcpy((char *)&wide + 32, &high, 32);
#else
  for (int i = 0; i < LANES; i++) wide[i] = (float)codes[i];
#endif
  return wide;
#endif
}
