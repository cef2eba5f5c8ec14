/* The processor's tiles (AMX): whether this process may use them, and how they are laid out. For tiles.c and integers.c. */
#pragma once
#include "panels.h"

#if defined(__AMX_INT8__) && defined(__AMX_BF16__) && defined(__AVX512BF16__)
#define TILES 1
enum { TILE_BYTES = 64, TILE_ROWS = 16 };

extern int may_use_tiles; /* whether the operating system lets this process: integers.c asks */

/* Source: Intel, Architecture Instruction Set Extensions, LDTILECFG, read 2026-11. */
typedef struct {
  uint8_t palette, start_row, reserved[14];
  uint16_t row_bytes[16];
  uint8_t rows[16];
} tiles_t;

/* gcc does not see that tiles read memory: what is written for them must be there before this. */
static inline void settle(const void *memory) { __asm__ volatile("" : : "r"(memory) : "memory"); }

/* Tiles 0 to 3 hold sums, 4 and 5 weights, 6 and 7 activations: 6 for the rows whose sums are in 0 and 1, 7 for those in
   2 and 3. What does not fill a tile is neither read nor written. */
static inline void lay_out_tiles(int rows, int more_rows) {
  tiles_t tiles = {.palette = 1};
  for (int i = 0; i < 8; i++) {
    int some = i == 4 || i == 5 ? TILE_ROWS : i == 2 || i == 3 || i == 7 ? more_rows : rows;
    tiles.rows[i] = (uint8_t)some;
    tiles.row_bytes[i] = some ? TILE_BYTES : 0;
  }
  settle(&tiles);
  _tile_loadconfig(&tiles);
}

void tile_product(float *y, const float *x, const uint8_t *weights, const float *bias, form_t form, int rows, int wide);
#endif
