/* quant/panel.c: packing against the drawing in simd.h, and back to the same bytes. */
#include "check.h"

#include "quant/quant.h"

#include <stdio.h>
#include <string.h>

static void one_case(struct check *t, size_t rows, size_t cols)
{
    struct weights plain = random_weights(t, rows, cols, K_RANDOM, true);
    if (!panel_fits(&plain.w))
        return;
    check_case(t, "rows %zu, cols %zu", rows, cols);
    struct weights want = weights_as_panels(t, &plain);
    struct wmat w = panel_shape(&plain.w, rows);
    size_t row = wformat_row_bytes(w.format, cols), n = panel_count(&w);
    if (n != (rows + 15) / 16 || w.code_ld != row * 16) {
        check_fail(t, "%zu panels of %zu bytes", n, w.code_ld);
        return;
    }
    uint8_t *code = guard_out(t, "the codes", NULL, n * w.code_ld, 64, EDGE_END);
    uint8_t *scale = guard_out(t, "the scales", NULL, n * w.scale_ld, 1, EDGE_END);
    w.codes = code;
    w.scales = scale;
    for (size_t p = 0; p < n; p++) {
        panel_pack(code + p * w.code_ld, scale + p * w.scale_ld, &plain.w, p * 16);
        if (memcmp(code + p * w.code_ld, want.w.codes + p * want.w.code_ld, w.code_ld) != 0)
            check_fail(t, "the codes of panel %zu", p);
        if (w.scale_ld > 0 &&
            memcmp(scale + p * w.scale_ld, want.w.scales + p * want.w.scale_ld, w.scale_ld) != 0)
            check_fail(t, "the scales of panel %zu", p);
    }
    /* of one row, plain */
    size_t scales = w.format == W_E4M3 ? w.scale_ld : w.scale_ld / 16;
    for (size_t p = 0; p < n; p++) {
        size_t here = rows - p * 16 < 16 ? rows - p * 16 : 16, scale_rows = scales > 0 ? here : 0;
        scale_rows = w.format == W_E4M3 ? 1 : scale_rows;
        uint8_t *c = guard_out(t, "the plain codes", NULL, here * row, 1, EDGE_END);
        uint8_t *s = guard_out(t, "the plain scales", NULL, scale_rows * scales, 1, EDGE_END);
        panel_unpack(c, row, s, scales, &w, p);
        for (size_t r = 0; r < here; r++)
            if (memcmp(c + r * row, plain.w.codes + (p * 16 + r) * plain.w.code_ld, row) != 0)
                check_fail(t, "row %zu's codes are not what they were", p * 16 + r);
        size_t block = w.format == W_E4M3 ? plain.w.block_rows : 1;
        for (size_t r = 0; r < scale_rows; r++)
            if (memcmp(s + r * scales, plain.w.scales + (p * 16 + r) / block * plain.w.scale_ld,
                       scales) != 0)
                check_fail(t, "row %zu's scales are not what they were", p * 16 + r);
    }
}

static void check_panels(struct check *t)
{
    static const size_t rows[] = {1, 15, 16, 17, 33, 129, 256},
                        cols[] = {32, 64, 96, 160, 512, 4096};
    for (size_t r = 0; r < 7; r++)
        for (size_t c = 0; c < 6; c++)
            for (int n = 0; n < 3 && !check_done(t); n++) { /* of e4m3: different blocks */
                one_case(t, rows[r], cols[c]);
                case_end(t);
            }
}

void check_panels_line(uint64_t seed, size_t *passed, size_t *failed)
{
    static const enum wformat formats[] = {W_BF16, W_E4M3, W_E2M1, W_Q8, W_Q4, W_Q3, W_Q2};
    for (size_t i = 0; i < sizeof formats / sizeof *formats; i++) {
        struct line l = {.kernel = "panels", .run = check_panels, .format = formats[i]};
        struct check t = {.seed = seed, .limit = 1, .level = "quant"};
        run_line(&t, &l);
        bool bad = t.failures > 0 || t.cases == 0;
        printf("%-11s panels %-19s %s (%zu cases) %s\n", t.level, wformat_name(formats[i]),
               bad ? "FAILED" : "ok", t.cases, t.first);
        *(bad ? failed : passed) += 1;
    }
}
