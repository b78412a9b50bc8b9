/* Prompt encoding: the three dialects as tables, and dsv4_render. What a prompt consists of is decided
 * in chat_prepare.c, how it is written in chat_render.c. No template engine: the format is fixed by
 * the releases, and a template in a model directory is never executed. */
#include "chat_inner.h"

#include <stdlib.h>
#include <string.h>

static const char thorough[] =
    "Reasoning Effort: Absolute maximum with no shortcuts permitted.\n"
    "You MUST be very thorough in your thinking and comprehensively decompose the problem to "
    "resolve "
    "the root cause, rigorously stress-testing your logic against all potential paths, edge cases, "
    "and adversarial scenarios.\n"
    "Explicitly write out your entire deliberation process, documenting every intermediate step, "
    "considered alternative, and rejected hypothesis to ensure absolutely no assumption is left "
    "unchecked.\n\n";

static const char relentless[] =
    "Reasoning Effort: Beyond maximum — exhaustive, relentless, and uncompromising.\n"
    "You MUST reason with the utmost depth and rigor, leaving absolutely nothing to chance: "
    "exhaustively decompose the problem into its most fundamental components, trace every causal "
    "chain to its root, and resolve the underlying cause rather than any surface symptom.\n"
    "Do not stop reasoning until you have independently verified the solution from multiple angles "
    "and are certain that no assumption remains unchecked and no error remains undiscovered.\n\n";

static const struct effort efforts_preview[] = {{"high", "", 0}, {"max", thorough, 0}, {0}};
static const struct effort efforts_0731[] = {
    {"low", "", 0}, {"high", thorough, 0}, {"max", relentless, 0}, {0}};
static const struct effort efforts_v41[] = {
    {"high", "", 75}, {"low", "", 50}, {"max", "", 100}, {0}};

const struct dialect chat_dialects[3] = {
    {false, {"tool_calls", "invoke", "parameter"}, efforts_preview},
    {false, {"tool_calls", "invoke", "parameter"}, efforts_0731},
    {true, {" calls", " invoke", " parameter"}, efforts_v41},
};

static void chat_free(struct chat *c)
{
    for (size_t i = 0; i < c->n_images; i++)
        free(c->images[i]);
    free(c->images);
    free(c->messages);
    free(c->blocks);
    free(c->text.data);
    free(c->spans);
}

/* Whoever fills in the images relies on one place for each. Blocks beside a text content, or in a message
 * that is left out, have none. */
static int check_images(const struct chat *c, dsv4_err *err)
{
    size_t n = 0;
    for (size_t i = 0; i < c->n_spans; i++) {
        dsv4_span s = c->spans[i];
        n += s.end - s.begin == strlen(M_IMAGE) &&
             memcmp(c->text.data + s.begin, M_IMAGE, strlen(M_IMAGE)) == 0;
    }
    return n == c->n_images
               ? 0
               : err_set(err, DSV4_REFUSED, "%zu images, but places for %zu in the prompt",
                         c->n_images, n);
}

/* Hands over what the chat has made. */
static int make_prompt(struct chat *c, dsv4_prompt **out, dsv4_err *err)
{
    dsv4_prompt *p;
    TRY(mem_alloc(&p, 1, sizeof *p, "a prompt", err));
    *p = (dsv4_prompt){c->text.data, c->text.len, c->spans, c->n_spans, c->images, c->n_images};
    c->text = (struct bytes){0};
    c->spans = NULL;
    c->images = NULL;
    c->n_images = 0;
    *out = p;
    return 0;
}

int dsv4_render(dsv4_dialect dialect, const char *json, size_t len, dsv4_prompt **out,
                dsv4_err *err)
{
    *out = NULL;
    if ((unsigned)dialect >= sizeof chat_dialects / sizeof *chat_dialects)
        return err_set(err, DSV4_USAGE, "there is no chat dialect %d", (int)dialect);
    struct jv_doc doc;
    TRY(jv_parse(&doc, json, len, "chat", err));
    struct chat c = {.dialect = &chat_dialects[dialect]};
    int rc = chat_prepare(&c, doc.root, err);
    if (rc == 0)
        rc = chat_render(&c, err);
    if (rc == 0)
        rc = check_images(&c, err);
    if (rc == 0)
        rc = make_prompt(&c, out, err);
    chat_free(&c);
    jv_free(&doc);
    return rc;
}

void dsv4_prompt_close(dsv4_prompt *p)
{
    if (!p)
        return;
    for (size_t i = 0; i < p->n_images; i++)
        free(p->images[i]);
    free(p->images);
    free(p->control);
    free(p->text);
    free(p);
}
