/* Weights in the order in which they are read. For products.c, which packs and multiplies them, and tiles.c. */
#pragma once
#include "lanes.h"

enum { DEPTH = 256 };  /* inputs at a time: a group of rows then stays in the first cache for all panels */
enum { AHEAD = 2048 }; /* bytes of weights that are asked of memory before they are needed */

/* For each DEPTH of inputs panels of LANES outputs, in a panel one input after the other (4 bits: eight inputs in 32 bits
   of each output). A panel is made of pieces, the inputs of one DEPTH under one scale; before the codes of each stand a
   scale for every output and, where codes have a zero, a shift: weight = scale * code + shift. Either is float16 or
   float32: 2 or 4 bytes a number, 0 if there is none. Codes of 4 bits lie 8 above what they mean. */
typedef struct {
  int bits, group, scale_bytes, shift_bytes, n;
} form_t;

/* A DEPTH of inputs, as all its products need it. */
typedef struct {
  form_t form;
  int start, end;
  size_t size;  /* bytes of a panel */
  int piece;    /* number of the first one */
  int pieces;   /* of a whole row */
  size_t step;  /* of y */
} block_t;

static inline int header_bytes(form_t form) { return LANES * (form.scale_bytes + form.shift_bytes); }

/* How many inputs from input `k` on are of its piece. */
static inline int piece_at(form_t form, int k) {
  int depth = (k / DEPTH + 1) * DEPTH, group = (k / form.group + 1) * form.group, end = depth < group ? depth : group;
  return (end < form.n ? end : form.n) - k;
}

/* From input `start` to `end`, both at the border of a piece. */
static inline int pieces_in(form_t form, int start, int end) {
  int count = 0;
  for (int k = start; k < end; k += piece_at(form, k)) count++;
  return count;
}

/* Of one panel. */
static inline size_t panel_bytes(form_t form, int start, int end) {
  return (size_t)pieces_in(form, start, end) * header_bytes(form) + (size_t)(end - start) * LANES * form.bits / 8;
}

static inline lanes numbers_at(const uint8_t *at, int bytes) {
  return bytes == 2 ? from_halves(at) : load((const float *)at);
}

static inline lanes bytes_at(const uint8_t *at) {
  signed_bytes some;
  memcpy(&some, at, sizeof some);
  return from_bytes(some);
}

static inline __attribute__((always_inline)) void widen(lanes *to, const uint8_t *weights, const block_t *block,
                                                        int bits) {
  form_t form = block->form;
  for (int k = block->start, piece; k < block->end; k += piece) {
    piece = piece_at(form, k);
    lanes scale = {0}, shift = {0};
    if (form.scale_bytes) scale = numbers_at(weights, form.scale_bytes);
    if (form.shift_bytes) shift = numbers_at(weights + LANES * form.scale_bytes, form.shift_bytes);
    weights += header_bytes(form);
    int each = bits == 4 ? 8 : 1, step = each * LANES * bits / 8;
    for (int i = 0; i < piece; i += each, weights += step) {
      __builtin_prefetch(weights + AHEAD);
      if (bits == 16) *to++ = numbers_at(weights, 2);
      if (bits == 8) *to++ = fused(bytes_at(weights), scale, shift);
#pragma GCC unroll 8
      for (int j = 0; bits == 4 && j < each; j++)
        *to++ = fused(from_nibbles(*(const int_lanes *)weights, 4 * j), scale, shift);
    }
  }
}

/* What the weights of one panel over the inputs of a block mean, as (inputs, LANES) floats. */
static inline void widen_panel(lanes *to, const uint8_t *weights, const block_t *block) {
  if (block->form.bits == 16) widen(to, weights, block, 16);
  if (block->form.bits == 8) widen(to, weights, block, 8);
  if (block->form.bits == 4) widen(to, weights, block, 4);
}
