/* What dsv4-bench shows: its results as a sheet, as lines for a spreadsheet, beside earlier ones, drawn. */
#include "bench.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* ------------------------------------------------------------------ reading results */

static double of(const json_t *j, const char *key, const char *which)
{
    return real_of(json_object_get(j, key), which);
}

static bool is_prefill(const json_t *c)
{
    return strcmp(word_of(c, "kind"), "prefill") == 0;
}

static const json_t *cases_of(const json_t *result)
{
    return json_object_get(result, "measured");
}

/* "0, 2-4" */
static void layers_text(char *out, size_t size, const json_t *list)
{
    size_t n = json_array_size(list), used = 0;
    out[0] = 0;
    for (size_t i = 0, k; i < n && used < size; i = k) {
        json_int_t a = json_integer_value(json_array_get(list, i)), b = a;
        for (k = i + 1; k < n && json_integer_value(json_array_get(list, k)) == b + 1; k++)
            b++;
        int w = a == b ? snprintf(out + used, size - used, "%s%lld", i ? ", " : "", (long long)a)
                       : snprintf(out + used, size - used, "%s%lld-%lld", i ? ", " : "",
                                  (long long)a, (long long)b);
        used += (size_t)w;
    }
}

/* ------------------------------------------------------------------ the sheet */

static void show_head(struct stream *out, const json_t *r)
{
    char layers[400];
    const json_t *s = json_object_get(r, "slice");
    layers_text(layers, sizeof layers, json_object_get(s, "layers"));
    stream_foreign(out, word_of(r, "model"), strlen(word_of(r, "model")));
    stream_foreign_end(out);
    stream_printf(out, " on %.0f threads, %s kernels%s; median of %.0f (least .. most)\n",
                  real_of(r, "threads"), word_of(r, "kernels"),
                  json_is_true(json_object_get(s, "exact")) ? ", exact" : "",
                  real_of(r, "repetitions"));
    stream_printf(out,
                  "slice       layers %s of %.0f; %.0f experts, weights of %.0f; vocabulary %.0f; "
                  "%s experts, %s elsewhere; %.2f GB\n",
                  layers, of(r, "whole_model", "layers"), real_of(s, "experts"), real_of(s, "held"),
                  real_of(s, "vocabulary"), word_of(s, "experts_format"),
                  word_of(s, "dense_format"), real_of(s, "memory_bytes") * 1e-9);
}

static void show_spread(struct stream *out, const json_t *j, const char *key, double scale,
                        const char *unit)
{
    if (json_is_object(json_object_get(j, key)))
        stream_printf(out, "%.1f %s (%.1f .. %.1f)", of(j, key, "median") * scale, unit,
                      of(j, key, "min") * scale, of(j, key, "max") * scale);
    else
        stream_printf(out, "not measured");
}

static void show_roofs(struct stream *out, const json_t *r)
{
    const json_t *f = json_object_get(r, "roofs");
    stream_text(out, "machine     read ");
    show_spread(out, f, "read_bytes_per_second", 1e-9, "GB/s");
    stream_text(out, ", copy ");
    show_spread(out, f, "copy_bytes_per_second", 1e-9, "GB/s");
    stream_text(out, "\n            int8 ");
    show_spread(out, f, "int8_multiply_adds_per_second", 1e-9, "G multiply-adds/s");
    stream_text(out, ", f32 ");
    show_spread(out, f, "f32_multiply_adds_per_second", 1e-9, "G multiply-adds/s");
    if (json_is_object(json_object_get(f, "barrier_seconds"))) {
        stream_text(out, "\n            a barrier ");
        show_spread(out, f, "barrier_seconds", 1e9, "ns");
    }
    stream_text(out, "\n");
}

static void show_case(struct stream *out, const json_t *c)
{
    bool prefill = is_prefill(c);
    const char *speed = prefill ? "multiply_adds_per_second" : "bytes_per_second";
    const char *share = prefill ? "share_of_int8" : "share_of_read";
    char share_text[48] = "          -";
    if (json_is_object(json_object_get(c, share)))
        snprintf(share_text, sizeof share_text, "%5.1f %% (%.1f .. %.1f)",
                 100 * of(c, share, "median"), 100 * of(c, share, "min"),
                 100 * of(c, share, "max"));
    stream_printf(out, "%-8s %6.0f %8.0f   %9.2f (%.2f .. %.2f)  %8.1f %s  %-22s %9.2f%s\n",
                  word_of(c, "kind"), real_of(c, "rows"), real_of(c, "depth"),
                  of(c, "tokens_per_second", "median"), of(c, "tokens_per_second", "min"),
                  of(c, "tokens_per_second", "max"), of(c, speed, "median") * 1e-9,
                  prefill ? "Gma/s" : "GB/s ", share_text, real_of(c, "whole_tokens_per_second"),
                  json_is_true(json_object_get(c, "whole_has_unmeasured_kinds")) ? " ?" : "");
}

static void show_cases(struct stream *out, const json_t *r)
{
    size_t i;
    const json_t *c;
    stream_text(out,
                "\n           rows    depth   tokens/s of the slice        reads or multiplies, "
                "of the roof     tokens/s of the whole model\n");
    json_array_foreach(cases_of(r), i, c) show_case(out, c);
}

static double total(const json_t *c)
{
    double sum = 0;
    const char *key;
    json_t *v;
    json_object_foreach(json_object_get(c, "operators"), key, v) sum += json_number_value(v);
    return sum;
}

/* The head of a case's column, " d1@4096"; returns its width. */
static int case_name(const json_t *c, char *out, size_t size)
{
    return snprintf(out, size, " %c%.0f@%.0f", is_prefill(c) ? 'p' : 'd', real_of(c, "rows"),
                    real_of(c, "depth"));
}

static void show_operators(struct stream *out, const json_t *r)
{
    size_t i;
    const json_t *c;
    const char *op;
    json_t *v;
    char head[40];
    stream_printf(out, "\n%-16s", "time in percent");
    json_array_foreach(cases_of(r), i, c)
    {
        case_name(c, head, sizeof head);
        stream_text(out, head);
    }
    stream_text(out, "\n");
    json_object_foreach(json_object_get(json_array_get(cases_of(r), 0), "operators"), op, v)
    {
        stream_printf(out, "%-16s", op);
        json_array_foreach(cases_of(r), i, c)
        {
            int width = case_name(c, head, sizeof head);
            stream_printf(out, "%*.1f", width, 100 * of(c, "operators", op) / total(c));
        }
        stream_text(out, "\n");
    }
    stream_printf(out, "%-16s", "barriers a layer");
    json_array_foreach(cases_of(r), i, c) stream_printf(
        out, "%*.1f", case_name(c, head, sizeof head), real_of(c, "barriers_per_layer"));
    stream_text(out, "\n");
}

static void show_whole(struct stream *out, const json_t *r)
{
    const json_t *w = json_object_get(r, "whole_model");
    bool fits = json_is_true(json_object_get(w, "fits"));
    stream_printf(out,
                  "\nwhole model %.0f layers, %.1f GB of weights, %.2f GB read for a token; caches "
                  "%.2f GB at %.0f tokens, %.2f GB at %.0f; buffers %.2f GB\n",
                  real_of(w, "layers"), real_of(w, "weights_bytes") * 1e-9,
                  real_of(w, "bytes_per_token") * 1e-9, real_of(w, "cache_bytes") * 1e-9,
                  real_of(w, "context"), real_of(w, "full_cache_bytes") * 1e-9,
                  real_of(w, "full_context"), real_of(w, "buffer_bytes") * 1e-9);
    if (real_of(w, "engram_table_bytes") > 0)
        stream_printf(out, "            and %.1f GB of Engram tables, which may stay on disk\n",
                      real_of(w, "engram_table_bytes") * 1e-9);
    stream_printf(out, "            %s into the %.1f GB of this machine%s\n",
                  fits ? "fits" : "does not fit", real_of(w, "available_bytes") * 1e-9,
                  fits ? "" : ": the predicted speed is what it would be with enough memory");
}

static void show_check(struct stream *out, const json_t *r)
{
    char layers[400];
    size_t i;
    const json_t *c, *check = json_object_get(r, "check");
    if (!check)
        return;
    layers_text(layers, sizeof layers, json_object_get(check, "layers"));
    stream_printf(out,
                  "\nprediction for layers %s (weights of %.0f experts), and what was measured\n",
                  layers, real_of(check, "held"));
    json_array_foreach(json_object_get(check, "measured"), i, c) stream_printf(
        out,
        "%-8s %6.0f %8.0f   %9.2f  %9.2f tokens/s  %+.1f %% (the machine meanwhile "
        "%+.1f %%)\n",
        word_of(c, "kind"), real_of(c, "rows"), real_of(c, "depth"),
        real_of(c, "predicted_tokens_per_second"), real_of(c, "measured_tokens_per_second"),
        100 * real_of(c, "error"), 100 * real_of(c, "machine_change"));
}

int bench_text(struct program *p, const json_t *r, dsv4_err *err)
{
    struct stream *out = &p->term.out;
    show_head(out, r);
    show_roofs(out, r);
    show_cases(out, r);
    show_operators(out, r);
    show_whole(out, r);
    show_check(out, r);
    return stream_flush(out, err);
}

/* ------------------------------------------------------------------ lines */

int bench_csv(struct program *p, const json_t *r, dsv4_err *err)
{
    struct stream *out = &p->term.out;
    size_t i;
    const json_t *c;
    stream_text(out, "kind,rows,depth,tokens_per_second_min,tokens_per_second_median,"
                     "tokens_per_second_max,per_second,share_of_roof,whole_tokens_per_second\n");
    json_array_foreach(cases_of(r), i, c)
    {
        bool prefill = is_prefill(c);
        stream_printf(out, "%s,%.0f,%.0f,%.6g,%.6g,%.6g,%.6g,%.6g,%.6g\n", word_of(c, "kind"),
                      real_of(c, "rows"), real_of(c, "depth"), of(c, "tokens_per_second", "min"),
                      of(c, "tokens_per_second", "median"), of(c, "tokens_per_second", "max"),
                      of(c, prefill ? "multiply_adds_per_second" : "bytes_per_second", "median"),
                      of(c, prefill ? "share_of_int8" : "share_of_read", "median"),
                      real_of(c, "whole_tokens_per_second"));
    }
    return stream_flush(out, err);
}

/* ------------------------------------------------------------------ beside earlier results */

static const json_t *same_case(const json_t *old, const json_t *c)
{
    size_t i;
    const json_t *o;
    json_array_foreach(cases_of(old), i,
                       o) if (strcmp(word_of(o, "kind"), word_of(c, "kind")) == 0 &&
                              real_of(o, "rows") == real_of(c, "rows") &&
                              real_of(o, "depth") == real_of(c, "depth")) return o;
    return NULL;
}

/* Beyond the ranges of both. */
static const char *verdict(const json_t *old, const json_t *c)
{
    if (of(c, "tokens_per_second", "min") > of(old, "tokens_per_second", "max"))
        return "faster";
    if (of(c, "tokens_per_second", "max") < of(old, "tokens_per_second", "min"))
        return "slower";
    return "within the ranges";
}

static void show_comparison(struct stream *out, const json_t *r, const json_t *old)
{
    size_t i;
    const json_t *c;
    double read = of(json_object_get(r, "roofs"), "read_bytes_per_second", "median");
    double before = of(json_object_get(old, "roofs"), "read_bytes_per_second", "median");
    stream_printf(out, "\nagainst an earlier run (%s kernels, %.0f threads)\n",
                  word_of(old, "kernels"), real_of(old, "threads"));
    if (!json_equal(json_object_get(r, "slice"), json_object_get(old, "slice")) ||
        strcmp(word_of(r, "model"), word_of(old, "model")) != 0)
        stream_text(out, "            of another slice or model: tokens/s are not comparable\n");
    if (before > 0)
        stream_printf(out, "machine     reads %+.1f %%\n", 100 * (read / before - 1));
    json_array_foreach(cases_of(r), i, c)
    {
        const json_t *o = same_case(old, c);
        double was = o ? of(o, "tokens_per_second", "median") : 0;
        double now = of(c, "tokens_per_second", "median");
        stream_printf(out, "%-8s %6.0f %8.0f   ", word_of(c, "kind"), real_of(c, "rows"),
                      real_of(c, "depth"));
        if (was > 0)
            stream_printf(out, "%9.2f -> %9.2f tokens/s  %+.1f %%  %s\n", was, now,
                          100 * (now / was - 1), verdict(o, c));
        else
            stream_text(out, "not in the earlier run\n");
    }
}

int bench_compare(struct program *p, const json_t *result, const char *path, dsv4_err *err)
{
    enum { MAX = 16 << 20 };
    char *text;
    size_t len;
    json_error_t je;
    TRY(file_read(path, MAX, &text, &len, err));
    json_t *old = json_loadb(text, len, 0, &je);
    free(text);
    int rc = 0;
    if (!old || !json_is_array(cases_of(old)))
        rc = err_set(err, DSV4_REFUSED, "%s: not what dsv4-bench --json writes%s%s", path,
                     old ? "" : ": ", old ? "" : je.text);
    else
        show_comparison(&p->term.out, result, old);
    json_decref(old);
    return rc != 0 ? rc : stream_flush(&p->term.out, err);
}

/* ------------------------------------------------------------------ a drawing */

enum { WIDTH = 640, PANEL_HEIGHT = 260, LEFT = 70, RIGHT = 20, TOP = 40, BOTTOM = 40 };

struct panel {
    const json_t *result;
    double rows; /* of the cases drawn here */
    bool prefill;
    double deepest, most;
    int y;
};

/* Depths lie on a logarithmic scale that has a 0. */
static double place_x(const struct panel *p, double depth)
{
    double part = p->deepest > 0 ? log2(1 + depth / 64) / log2(1 + p->deepest / 64) : 0.5;
    return LEFT + part * (WIDTH - LEFT - RIGHT);
}

static double place_y(const struct panel *p, double rate)
{
    double height = PANEL_HEIGHT - TOP - BOTTOM;
    return p->y + TOP + height * (1 - rate / p->most);
}

static bool belongs(const struct panel *p, const json_t *c)
{
    return is_prefill(c) == p->prefill && real_of(c, "rows") == p->rows;
}

static int draw_axes(struct bytes *b, const struct panel *p, dsv4_err *err)
{
    TRY(bytes_printf(b, err, "<text x=\"%d\" y=\"%d\" class=\"t\">%s", LEFT, p->y + 20,
                     p->prefill ? "prefill" : "decode"));
    if (p->prefill)
        TRY(bytes_printf(b, err, " of %.0f rows", p->rows));
    TRY(bytes_text(b, ", tokens/s over tokens of context</text>\n", err));
    for (int i = 0; i <= 4; i++) {
        double rate = p->most * i / 4, y = place_y(p, rate);
        TRY(bytes_printf(b, err,
                         "<line x1=\"%d\" x2=\"%d\" y1=\"%.1f\" y2=\"%.1f\" class=\"g\"/>"
                         "<text x=\"%d\" y=\"%.1f\" class=\"r\">%.3g</text>\n",
                         LEFT, WIDTH - RIGHT, y, y, LEFT - 6, y + 4, rate));
    }
    return 0;
}

static int draw_points(struct bytes *b, const struct panel *p, dsv4_err *err)
{
    size_t i;
    const json_t *c;
    TRY(bytes_text(b, "<polyline class=\"s\" points=\"", err));
    json_array_foreach(cases_of(p->result), i, c) if (belongs(p, c))
        TRY(bytes_printf(b, err, "%.1f,%.1f ", place_x(p, real_of(c, "depth")),
                         place_y(p, of(c, "tokens_per_second", "median"))));
    TRY(bytes_text(b, "\"/>\n", err));
    json_array_foreach(cases_of(p->result), i, c)
    {
        if (!belongs(p, c))
            continue;
        double x = place_x(p, real_of(c, "depth"));
        TRY(bytes_printf(b, err,
                         "<line x1=\"%.1f\" x2=\"%.1f\" y1=\"%.1f\" y2=\"%.1f\" class=\"s\"/>"
                         "<circle cx=\"%.1f\" cy=\"%.1f\" r=\"3\"/>"
                         "<text x=\"%.1f\" y=\"%d\" class=\"m\">%.0f</text>"
                         "<text x=\"%.1f\" y=\"%.1f\" class=\"m\">%.3g</text>\n",
                         x, x, place_y(p, of(c, "tokens_per_second", "min")),
                         place_y(p, of(c, "tokens_per_second", "max")), x,
                         place_y(p, of(c, "tokens_per_second", "median")), x,
                         p->y + PANEL_HEIGHT - BOTTOM + 18, real_of(c, "depth"), x,
                         place_y(p, of(c, "tokens_per_second", "median")) - 8,
                         of(c, "tokens_per_second", "median")));
    }
    return 0;
}

static int draw_panel(struct bytes *b, struct panel *p, dsv4_err *err)
{
    size_t i;
    const json_t *c;
    p->most = p->deepest = 0;
    json_array_foreach(cases_of(p->result), i, c) if (belongs(p, c))
    {
        p->most = fmax(p->most, 1.15 * of(c, "tokens_per_second", "max"));
        p->deepest = fmax(p->deepest, real_of(c, "depth"));
    }
    TRY(draw_axes(b, p, err));
    return draw_points(b, p, err);
}

/* One panel for decoding and one for every number of rows. */
static int draw(struct bytes *body, const json_t *result, int *height, dsv4_err *err)
{
    size_t i, k;
    const json_t *c, *before;
    struct panel p = {.result = result};
    json_array_foreach(cases_of(result), i, c)
    {
        p.prefill = is_prefill(c);
        p.rows = real_of(c, "rows");
        bool drawn = false;
        json_array_foreach(cases_of(result), k, before) if (k < i) drawn =
            drawn || belongs(&p, before);
        if (drawn)
            continue;
        p.y = *height;
        *height += PANEL_HEIGHT;
        TRY(draw_panel(body, &p, err));
    }
    return 0;
}

int bench_svg(const char *path, const json_t *result, dsv4_err *err)
{
    struct bytes body = {0}, all = {0};
    int height = 0;
    int rc = draw(&body, result, &height, err);
    if (rc == 0)
        rc = bytes_printf(
            &all, err,
            "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"%d\" height=\"%d\">\n"
            "<style>text{font:12px sans-serif}.t{font-weight:bold}.r{text-anchor:end}"
            ".m{text-anchor:middle}.g{stroke:#ddd}.s{stroke:#36c;fill:none;stroke-width:2}"
            "circle{fill:#36c}</style>\n<rect width=\"100%%\" height=\"100%%\" fill=\"#fff\"/>\n"
            "%s</svg>\n",
            WIDTH, height, body.data ? body.data : "");
    if (rc == 0)
        rc = sink_file(path, all.data, all.len, err);
    free(body.data);
    free(all.data);
    return rc;
}
