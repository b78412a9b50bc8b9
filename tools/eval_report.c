/* Results for people: sheets, and the grid of needles as characters and as SVG. */
#include "eval.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

/* ------------------------------------------------------------------ perplexity */

static void show_kl(struct stream *out, const json_t *r)
{
    const json_t *kl = json_object_get(r, "kl");
    double error = real_of(kl, "mean_error");
    stream_printf(out, "reference     perplexity %.6f, ratio %.6f\n",
                  real_of(r, "reference_perplexity"),
                  real_of(r, "perplexity") / real_of(r, "reference_perplexity"));
    stream_printf(out, "KL            mean %.4g", real_of(kl, "mean"));
    if (error > 0)
        stream_printf(out, " +- %.1g (at least %.4g)", error, real_of(kl, "mean_at_least"));
    stream_printf(out, ", median %.3g, 99 %% below %.3g, at most %.3g nats\n",
                  real_of(kl, "median"), real_of(kl, "p99"), real_of(kl, "max"));
    stream_printf(out, "same best     %.3f %% of tokens\n", 100 * real_of(r, "same_top"));
}

void show_perplexity(struct stream *out, const json_t *r)
{
    const json_t *files = json_object_get(r, "files"), *f;
    size_t i;
    stream_printf(out, "perplexity    %.6f +- %.4f (%.0f tokens)\n", real_of(r, "perplexity"),
                  real_of(r, "perplexity_error"), real_of(r, "tokens"));
    if (json_object_get(r, "kl"))
        show_kl(out, r);
    stream_printf(out, "speed         %.0f tokens/s", real_of(r, "tokens_per_second"));
    if (json_object_get(r, "reference_tokens_per_second"))
        stream_printf(out, ", reference %.0f", real_of(r, "reference_tokens_per_second"));
    stream_text(out, "\n");
    if (json_array_size(files) < 2)
        return;
    json_array_foreach(files, i, f)
    {
        const char *path = word_of(f, "path");
        stream_printf(out, "  %10.4f  %8.0f tokens  ", real_of(f, "perplexity"),
                      real_of(f, "tokens"));
        stream_foreign(out, path, strlen(path));
        stream_foreign_end(out);
        stream_text(out, "\n");
    }
}

/* ------------------------------------------------------------------ models side by side */

static void show_model_name(struct stream *out, const json_t *r)
{
    const json_t *m = json_object_get(r, "model");
    const char *path = word_of(m, "path");
    stream_foreign(out, path, strlen(path));
    stream_foreign_end(out);
    stream_text(out, json_is_true(json_object_get(m, "exact")) ? ", exact\n" : "\n");
}

void show_choice(struct stream *out, const json_t *r)
{
    size_t i;
    const json_t *m;
    stream_printf(out, "%.0f questions; right by log-likelihood, by log-likelihood a byte:\n",
                  real_of(r, "questions"));
    json_array_foreach(json_object_get(r, "models"), i, m)
    {
        stream_printf(out, "  %6.2f %%   %6.2f %% +- %.2f   %6.0f tokens/s  ",
                      100 * real_of(m, "accuracy"), 100 * real_of(m, "accuracy_per_byte"),
                      100 * real_of(m, "accuracy_per_byte_error"), real_of(m, "tokens_per_second"));
        show_model_name(out, m);
    }
    if (json_object_get(r, "same_answer"))
        stream_printf(out, "the same answer to %.2f %%\n", 100 * real_of(r, "same_answer"));
}

/* ------------------------------------------------------------------ needles as characters */

/* Red over yellow to green: what a cell of this share looks like. */
static void colour_of(double share, int rgb[3])
{
    rgb[0] = (int)(share < 0.5 ? 214 : 214 - (share - 0.5) * 2 * 168);
    rgb[1] = (int)(share < 0.5 ? 66 + share * 2 * 108 : 174 - (share - 0.5) * 2 * 14);
    rgb[2] = (int)(66 + share * 6);
}

static void show_cell(struct stream *out, double share)
{
    int c[3];
    colour_of(share, c);
    if (out->colour)
        stream_printf(out, "\x1b[48;2;%d;%d;%dm\x1b[97m", c[0], c[1], c[2]);
    stream_printf(out, " %5.0f%% ", 100 * share);
    if (out->colour)
        stream_text(out, "\x1b[0m");
}

static void show_grid(struct stream *out, const json_t *r, const json_t *m)
{
    const json_t *lengths = json_object_get(r, "lengths"), *depths = json_object_get(r, "depths");
    const json_t *grid = json_object_get(m, "grid"), *length, *depth;
    size_t l, d;
    stream_text(out, "     depth");
    json_array_foreach(depths, d, depth) stream_printf(out, " %5.0f%% ", json_number_value(depth));
    stream_text(out, "\n");
    json_array_foreach(lengths, l, length)
    {
        stream_printf(out, "%10.0f", json_number_value(length));
        for (d = 0; d < json_array_size(depths); d++)
            show_cell(out, json_number_value(json_array_get(json_array_get(grid, l), d)));
        stream_text(out, "\n");
    }
}

void show_needle(struct stream *out, const json_t *r)
{
    size_t i;
    const json_t *m;
    json_array_foreach(json_object_get(r, "models"), i, m)
    {
        show_model_name(out, m);
        show_grid(out, r, m);
        stream_printf(out, "found %.1f %% of %.0f; prompts %.0f tokens/s, answers %.1f tokens/s\n",
                      100 * real_of(m, "found"),
                      (double)(json_array_size(json_object_get(r, "lengths")) *
                               json_array_size(json_object_get(r, "depths"))) *
                          real_of(r, "seeds"),
                      real_of(m, "prompt_tokens_per_second"),
                      real_of(m, "generated_tokens_per_second"));
    }
}

/* ------------------------------------------------------------------ needles as a picture */

enum { CELL_WIDTH = 64, CELL_HEIGHT = 32, LEFT = 90, TOP = 70, GAP = 40 };

/* Text of others inside XML. */
static int add_escaped(struct bytes *b, const char *text, dsv4_err *err)
{
    for (; *text; text++) {
        const char *as = *text == '<'   ? "&lt;"
                         : *text == '>' ? "&gt;"
                         : *text == '&' ? "&amp;"
                                        : NULL;
        if (as)
            TRY(bytes_text(b, as, err));
        else if ((unsigned char)*text >= 0x20)
            TRY(bytes_add(b, text, 1, err));
    }
    return 0;
}

static int draw_cell(struct bytes *b, double x, double y, double share, dsv4_err *err)
{
    int c[3];
    colour_of(share, c);
    return bytes_printf(
        b, err,
        "<rect x=\"%.0f\" y=\"%.0f\" width=\"%d\" height=\"%d\" "
        "fill=\"rgb(%d,%d,%d)\"/><text x=\"%.0f\" y=\"%.0f\" class=\"c\">%.0f</text>\n",
        x, y, CELL_WIDTH - 2, CELL_HEIGHT - 2, c[0], c[1], c[2], x + CELL_WIDTH / 2,
        y + CELL_HEIGHT / 2 + 4, 100 * share);
}

/* Lengths from left to right, depths from top to bottom, as a text is read. */
static int draw_grid(struct bytes *b, const json_t *r, const json_t *m, double top, dsv4_err *err)
{
    const json_t *lengths = json_object_get(r, "lengths"), *depths = json_object_get(r, "depths");
    const json_t *grid = json_object_get(m, "grid"), *v;
    const json_t *model = json_object_get(m, "model");
    size_t l, d;
    TRY(bytes_printf(b, err, "<text x=\"%d\" y=\"%.0f\" class=\"t\">", LEFT, top + 24));
    TRY(add_escaped(b, word_of(model, "path"), err));
    TRY(bytes_printf(
        b, err, "%s: %.1f %% found</text>\n<text x=\"%d\" y=\"%.0f\" class=\"r\">depth</text>\n",
        json_is_true(json_object_get(model, "exact")) ? ", exact" : "", 100 * real_of(m, "found"),
        LEFT - 8, top + TOP - 8));
    json_array_foreach(lengths, l, v) TRY(
        bytes_printf(b, err, "<text x=\"%.0f\" y=\"%.0f\" class=\"m\">%.0f</text>\n",
                     LEFT + ((double)l + 0.5) * CELL_WIDTH, top + TOP - 8, json_number_value(v)));
    json_array_foreach(depths, d, v)
    {
        double y = top + TOP + (double)d * CELL_HEIGHT;
        TRY(bytes_printf(b, err, "<text x=\"%d\" y=\"%.0f\" class=\"r\">%.0f %%</text>\n", LEFT - 8,
                         y + CELL_HEIGHT / 2 + 4, json_number_value(v)));
        for (l = 0; l < json_array_size(lengths); l++)
            TRY(draw_cell(b, LEFT + (double)l * CELL_WIDTH, y,
                          json_number_value(json_array_get(json_array_get(grid, l), d)), err));
    }
    return 0;
}

static int draw(struct bytes *b, const json_t *r, dsv4_err *err)
{
    const json_t *models = json_object_get(r, "models"), *m;
    double wide = LEFT + 20 + CELL_WIDTH * (double)json_array_size(json_object_get(r, "lengths"));
    double tall = TOP + GAP + CELL_HEIGHT * (double)json_array_size(json_object_get(r, "depths"));
    size_t i;
    TRY(bytes_printf(b, err,
                     "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"%.0f\" height=\"%.0f\">\n"
                     "<style>text{font:12px sans-serif}.t{font-weight:bold}.r{text-anchor:end}"
                     ".m,.c{text-anchor:middle}.c{fill:#fff}</style>\n"
                     "<rect width=\"100%%\" height=\"100%%\" fill=\"#fff\"/>\n",
                     fmax(wide, 420), tall * (double)json_array_size(models)));
    json_array_foreach(models, i, m) TRY(draw_grid(b, r, m, tall * (double)i, err));
    return bytes_text(b, "</svg>\n", err);
}

int needle_svg(const char *path, const json_t *result, dsv4_err *err)
{
    struct bytes b = {0};
    int rc = draw(&b, result, err);
    if (rc == 0)
        rc = sink_file(path, b.data, b.len, err);
    free(b.data);
    return rc;
}
