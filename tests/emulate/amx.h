/* amx.h - the tile instructions that simd/amx uses, written from Intel's definitions, for machines
 * without them. The state is a thread's own, as in the processor. What would fault there stops the
 * test. */
#ifndef DSV4_EMULATE_AMX_H
#define DSV4_EMULATE_AMX_H

#include <stdint.h>
#include <stdlib.h>
#include <string.h>

struct emu_tile {
    uint8_t row[16][64];
    uint8_t rows;   /* 0: not configured */
    uint16_t bytes; /* of a row */
};

static _Thread_local struct emu_tile emu_tiles[8];

static inline struct emu_tile *emu_tile(int t)
{
    if (emu_tiles[t].rows == 0)
        abort(); /* #UD */
    return &emu_tiles[t];
}

/* LDTILECFG: palette 1 has 8 tiles of at most 16 rows of 64 bytes; the rest of the 64 bytes is
 * zero. */
static inline void emu_loadconfig(const void *memory)
{
    const uint8_t *c = memory;
    if (c[0] != 1)
        abort(); /* #GP */
    for (int i = 2; i < 16; i++)
        if (c[i])
            abort();
    for (int t = 0; t < 16; t++) {
        uint16_t bytes;
        memcpy(&bytes, c + 16 + 2 * t, 2);
        uint8_t rows = c[48 + t];
        if (bytes > 64 || rows > 16 || (bytes == 0) != (rows == 0) || (t >= 8 && rows))
            abort();
        if (t < 8) {
            memset(&emu_tiles[t], 0, sizeof emu_tiles[t]);
            emu_tiles[t].rows = rows;
            emu_tiles[t].bytes = bytes;
        }
    }
}

static inline void emu_release(void)
{
    memset(emu_tiles, 0, sizeof emu_tiles);
}

static inline void emu_zero(int t)
{
    memset(emu_tile(t)->row, 0, sizeof emu_tiles[t].row);
}

/* Bytes and rows beyond the configured ones become zero. */
static inline void emu_loadd(int t, const void *base, size_t stride)
{
    struct emu_tile *d = emu_tile(t);
    memset(d->row, 0, sizeof d->row);
    for (int i = 0; i < d->rows; i++)
        memcpy(d->row[i], (const uint8_t *)base + (size_t)i * stride, d->bytes);
}

static inline void emu_stored(int t, void *base, size_t stride)
{
    const struct emu_tile *s = emu_tile(t);
    for (int i = 0; i < s->rows; i++)
        memcpy((uint8_t *)base + (size_t)i * stride, s->row[i], s->bytes);
}

/* TDPBSSD: c[i][j] += sum over k and 4 bytes of a[i][k] b[k][j], signed by signed. */
static inline void emu_dpbssd(int tc, int ta, int tb)
{
    struct emu_tile *c = emu_tile(tc);
    const struct emu_tile *a = emu_tile(ta), *b = emu_tile(tb);
    if (tc == ta || tc == tb || ta == tb || c->rows != a->rows || a->bytes / 4 != b->rows ||
        c->bytes != b->bytes || a->bytes % 4 || b->bytes % 4)
        abort(); /* #UD */
    for (int i = 0; i < c->rows; i++)
        for (int j = 0; j < c->bytes / 4; j++) {
            uint32_t s;
            memcpy(&s, c->row[i] + 4 * j, 4);
            for (int k = 0; k < a->bytes; k++)
                s += (uint32_t)((int8_t)a->row[i][k] * (int8_t)b->row[k / 4][4 * j + k % 4]);
            memcpy(c->row[i] + 4 * j, &s, 4);
        }
}

#undef _tile_loadconfig
#undef _tile_release
#undef _tile_zero
#undef _tile_loadd
#undef _tile_stored
#undef _tile_dpbssd
#define _tile_loadconfig emu_loadconfig
#define _tile_release    emu_release
#define _tile_zero       emu_zero
#define _tile_loadd      emu_loadd
#define _tile_stored     emu_stored
#define _tile_dpbssd     emu_dpbssd

#endif
