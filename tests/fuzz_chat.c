/* Fuzz target: any bytes as a request to all three dialects, ours and OpenAI's. A prompt that comes out
 * has control spans that ascend, lie inside the text and are exactly one known marker each, and a
 * place for each image; JSON that was read and written reads and writes the same again. */
#include "markers.h"
#include "src/text/chat_inner.h"
#include "src/text/text.h"

#include <stdlib.h>
#include <string.h>

static void must(bool good)
{
    if (!good)
        abort();
}

static bool is_marker(const char *text, size_t len)
{
    for (size_t i = 0; i < sizeof known / sizeof *known; i++)
        if (strlen(known[i]) == len && memcmp(known[i], text, len) == 0)
            return true;
    return false;
}

static void check_prompt(const dsv4_prompt *p)
{
    size_t at = 0, images = 0;
    must(p->text && p->text[p->len] == 0 && utf8_valid(p->text, p->len));
    for (size_t i = 0; i < p->n_control; i++) {
        dsv4_span s = p->control[i];
        must(s.begin >= at && s.begin < s.end && s.end <= p->len);
        must(is_marker(p->text + s.begin, s.end - s.begin));
        at = s.end;
        images += at - s.begin == strlen(M_IMAGE) &&
                  memcmp(p->text + s.begin, M_IMAGE, strlen(M_IMAGE)) == 0;
    }
    must(images == p->n_images);
    for (size_t i = 0; i < p->n_images; i++) {
        dsv4_err err;
        struct jv_doc doc;
        must(jv_parse(&doc, p->images[i], strlen(p->images[i]), "image", &err) == 0);
        jv_free(&doc);
    }
}

/* What was read is written; *text becomes that. False when it was not read. */
static bool rewrite(struct bytes *text, const char *data, size_t size, bool compact)
{
    dsv4_err err;
    struct jv_doc doc;
    if (jv_parse(&doc, data, size, "json", &err) != 0)
        return false;
    must(jv_write(text, doc.root, compact, &err) == 0);
    jv_free(&doc);
    return true;
}

static void render(dsv4_dialect d, const char *text, size_t size)
{
    dsv4_err err = {0};
    dsv4_prompt *p;
    int rc = dsv4_render(d, text, size, &p, &err);
    must((rc == 0) == (p != NULL) && (rc == 0 || (err.status == rc && err.text[0])));
    if (p)
        check_prompt(p);
    dsv4_prompt_close(p);
}

/* What comes out of a body is at least JSON for dsv4_render. */
static void convert(dsv4_dialect d, const char *text, size_t size)
{
    dsv4_err err = {0};
    struct jv_doc doc;
    char *json;
    int rc = dsv4_request(d, text, size, &json, &err);
    must((rc == 0) == (json != NULL) && (rc == 0 || (err.status == rc && err.text[0])));
    if (!json)
        return;
    must(jv_parse(&doc, json, strlen(json), "request", &err) == 0);
    jv_free(&doc);
    render(d, json, strlen(json));
    dsv4_free(json);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    const char *text = (const char *)data;
    for (dsv4_dialect d = DSV4_V4_PREVIEW; d <= DSV4_V41; d++) {
        render(d, text, size);
        convert(d, text, size);
    }
    struct bytes once = {0}, twice = {0};
    if (rewrite(&once, text, size, size % 2)) {
        must(rewrite(&twice, once.data, once.len, size % 2));
        must(once.len == twice.len && memcmp(once.data, twice.data, once.len) == 0);
    }
    free(once.data);
    free(twice.data);
    return 0;
}
