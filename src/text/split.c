/* The pre-tokenizer: cuts text into the pieces that byte-pair encoding then treats one by one.
 *
 * The three patterns of the released tokenizers are recognised by their text and run by a state
 * machine that looks at every character once or twice, over character classes that ship with us
 * (unicode_table.c). Any other pattern is compiled by PCRE2, with limits and without its JIT; where
 * PCRE2 is absent it is refused. Well-formed UTF-8 is the caller's business. */
#include "text.h"

#include <stdlib.h>
#include <string.h>

#ifdef HAVE_PCRE2
#define PCRE2_CODE_UNIT_WIDTH 8
#include <pcre2.h>
#endif

/* The released patterns, as tokenizer.json has them after JSON decoding. They work on what the one
 * before left, so only this order is one pass of the machine. */
static const struct {
    unsigned rule;
    const char *pattern;
} known[] = {
    {SPLIT_DIGITS, "\\p{N}{1,3}"},
    /* U+4E00..U+9FA5 U+3040..U+309F U+30A0..U+30FF */
    {SPLIT_CJK, "[\xe4\xb8\x80-\xe9\xbe\xa5\xe3\x81\x80-\xe3\x82\x9f\xe3\x82\xa0-\xe3\x83\xbf]+"},
    {SPLIT_WORDS, "[!\"#$%&'()*+,\\-./:;<=>?@\\[\\\\\\]^_`{|}~][A-Za-z]+"
                  "|[^\r\n\\p{L}\\p{P}\\p{S}]?[\\p{L}\\p{M}]+"
                  "| ?[\\p{P}\\p{S}]+[\r\n]*"
                  "|\\s*[\r\n]+"
                  "|\\s+(?!\\S)"
                  "|\\s+"},
};

const char *split_released(size_t i)
{
    return i < sizeof known / sizeof *known ? known[i].pattern : NULL;
}

/* ------------------------------------------------------------------ the machine */

/* The text seen by one piece of the first two rules: it ends where the zone changes. */
struct scan {
    const unsigned char *text;
    size_t len;
    unsigned mask, zone; /* which class bits make a zone, and their value here */
};

enum { CLASS_END = 256, LETTERS = CLASS_L | CLASS_M, MARKS = CLASS_P | CLASS_S };

/* The class of the character at `at` and where the next one begins. */
static inline unsigned class_at(const struct scan *s, size_t at, size_t *next)
{
    unsigned char b = s->text[at];
    if (b < 0x80) {
        *next = at + 1;
        return unicode_class[b];
    }
    size_t size;
    uint32_t c = utf8_decode(s->text + at, &size);
    *next = at + size;
    return unicode_class_of(c);
}

/* The same, CLASS_END where the zone ends. */
static inline unsigned peek(const struct scan *s, size_t at, size_t *next)
{
    *next = at;
    if (at == s->len)
        return CLASS_END;
    unsigned c = class_at(s, at, next);
    return (c & s->mask) == s->zone ? c : CLASS_END;
}

/* Behind the run of characters of these classes at `at`. */
static inline size_t run(const struct scan *s, size_t at, unsigned classes)
{
    size_t next;
    while (peek(s, at, &next) & classes)
        at = next;
    return at;
}

static bool ascii_letter(unsigned char b)
{
    return (b | 32) >= 'a' && (b | 32) <= 'z';
}

/* \s*[\r\n]+ | \s+(?!\S) | \s+ at a white-space character: up to the last line end of the run; else
 * all of it when the zone ends there; else all but the last character, which goes with what follows,
 * unless it is the only one. */
static size_t space_end(const struct scan *s, size_t begin)
{
    size_t at = begin, last = begin, line = 0, next;
    unsigned c;
    while ((c = peek(s, at, &next)) & CLASS_SPACE) {
        last = at;
        at = next;
        if (c & CLASS_NEWLINE)
            line = at;
    }
    if (line)
        return line;
    return c == CLASS_END || last == begin ? at : last;
}

/* Characters that no alternative matches (control and format characters, unassigned ones): one piece
 * up to the next match. Such a character itself begins a match when a letter follows it. */
static size_t unmatched_end(const struct scan *s, size_t at)
{
    size_t next, after;
    for (;; at = next) {
        unsigned c = peek(s, at, &next);
        if (c == CLASS_END || c & (LETTERS | MARKS | CLASS_SPACE))
            return at;
        if (peek(s, next, &after) & LETTERS)
            return at;
    }
}

/* The third pattern, alternatives in its order. */
static size_t word_end(const struct scan *s, size_t at)
{
    size_t next, after;
    unsigned char b = s->text[at];
    unsigned c = peek(s, at, &next);
    if (b < 0x80 && c & MARKS && next < s->len && ascii_letter(s->text[next])) {
        do
            next++;
        while (next < s->len && ascii_letter(s->text[next]));
        return next;
    }
    if (c & LETTERS)
        return run(s, next, LETTERS);
    if (!(c & (MARKS | CLASS_NEWLINE)) && peek(s, next, &after) & LETTERS)
        return run(s, after, LETTERS);
    if (c & MARKS)
        return run(s, run(s, next, MARKS), CLASS_NEWLINE);
    if (b == ' ' && peek(s, next, &after) & MARKS)
        return run(s, run(s, after, MARKS), CLASS_NEWLINE);
    if (c & CLASS_SPACE)
        return space_end(s, at);
    return unmatched_end(s, next);
}

size_t split_next(unsigned rules, const char *text, size_t len, size_t at)
{
    struct scan s = {.text = (const unsigned char *)text, .len = len};
    s.mask = (rules & SPLIT_DIGITS ? CLASS_N : 0u) | (rules & SPLIT_CJK ? CLASS_CJK : 0u);
    size_t next;
    s.zone = class_at(&s, at, &next) & s.mask;
    if (s.zone & CLASS_N) { /* never split further: no alternative of the words matches a digit */
        size_t end = next;
        for (int n = 1; n < 3 && peek(&s, end, &next) != CLASS_END; n++)
            end = next;
        return end;
    }
    if (rules & SPLIT_WORDS)
        return word_end(&s, at);
    do
        at = next;
    while (peek(&s, at, &next) != CLASS_END);
    return at;
}

/* ------------------------------------------------------------------ patterns through PCRE2 */

static int cut(struct cuts *out, size_t end, dsv4_err *err)
{
    TRY(mem_grow(&out->end, &out->cap, out->n + 1, sizeof *out->end, "pieces of a text", err));
    out->end[out->n++] = end;
    return 0;
}

#ifdef HAVE_PCRE2

/* What one match may take: steps, depth of groups, KiB. A pattern may be so many bytes long. */
enum { MATCH_STEPS = 1000000, MATCH_DEPTH = 10000, MATCH_HEAP = 65536, PATTERN_LONGEST = 16384 };

static int compile(void **code, const char *pattern, size_t len, const char *shown, dsv4_err *err)
{
    if (len > PATTERN_LONGEST)
        return err_set(err, DSV4_REFUSED,
                       "%s: a split pattern has %zu bytes; at most %d are allowed", shown, len,
                       PATTERN_LONGEST);
    int number;
    PCRE2_SIZE where;
    *code = pcre2_compile((PCRE2_SPTR)pattern, len, PCRE2_UTF | PCRE2_UCP | PCRE2_NEVER_BACKSLASH_C,
                          &number, &where, NULL);
    if (*code)
        return 0;
    if (number == PCRE2_ERROR_HEAP_FAILED)
        return err_memory(err, len, "a split pattern");
    PCRE2_UCHAR why[200] = "";
    pcre2_get_error_message(number, why, sizeof why);
    return err_set(err, DSV4_REFUSED, "%s: split pattern \"%.200s\": %s at byte %zu", shown,
                   pattern, (const char *)why, (size_t)where);
}

/* Matches and what lies between them become pieces. An empty match is a place to cut. */
static int cut_matches(const pcre2_code *code, pcre2_match_data *match, pcre2_match_context *limits,
                       const char *text, size_t len, size_t base, struct cuts *out, dsv4_err *err)
{
    size_t from = 0, done = 0;
    while (from < len) {
        int rc = pcre2_match(code, (PCRE2_SPTR)text, len, from, PCRE2_NO_UTF_CHECK, match, limits);
        if (rc == PCRE2_ERROR_NOMATCH)
            break;
        if (rc < 0) {
            PCRE2_UCHAR why[200] = "";
            pcre2_get_error_message(rc, why, sizeof why);
            return err_set(err, rc == PCRE2_ERROR_NOMEMORY ? DSV4_NO_MEMORY : DSV4_FAILED,
                           "a split pattern of the tokenizer failed on a text of %zu bytes: %s",
                           len, (const char *)why);
        }
        /* \K in a look-ahead can put the begin behind the end, or both before the search */
        size_t begin = pcre2_get_ovector_pointer(match)[0];
        size_t end = pcre2_get_ovector_pointer(match)[1];
        if (begin < done || begin > end)
            return err_set(err, DSV4_FAILED, "a split pattern of the tokenizer matches backwards");
        if (begin > done)
            TRY(cut(out, base + begin, err));
        if (end > begin)
            TRY(cut(out, base + end, err));
        done = from = end;
        if (begin == end && from < len) {
            size_t size;
            utf8_decode((const unsigned char *)text + from, &size);
            from += size;
        }
    }
    return done < len ? cut(out, base + len, err) : 0;
}

/* Cuts the pieces of the text that end at in[0..n). */
static int step_pattern(const struct split_step *step, const char *text, const size_t *in, size_t n,
                        size_t base, struct cuts *out, dsv4_err *err)
{
    pcre2_match_data *match = pcre2_match_data_create_from_pattern(step->code, NULL);
    pcre2_match_context *limits = pcre2_match_context_create(NULL);
    int rc = 0;
    if (!match || !limits) {
        rc = err_memory(err, 1024, "matching a split pattern");
    } else {
        pcre2_set_match_limit(limits, MATCH_STEPS);
        pcre2_set_depth_limit(limits, MATCH_DEPTH);
        pcre2_set_heap_limit(limits, MATCH_HEAP);
        size_t begin = 0;
        for (size_t i = 0; i < n && rc == 0; begin = in[i++])
            rc = cut_matches(step->code, match, limits, text + begin, in[i] - begin, base + begin,
                             out, err);
    }
    pcre2_match_context_free(limits);
    pcre2_match_data_free(match);
    return rc;
}

static void code_free(void *code)
{
    pcre2_code_free(code);
}

#else

static int compile(void **code, const char *pattern, size_t len, const char *shown, dsv4_err *err)
{
    (void)code;
    return err_set(err, DSV4_REFUSED,
                   "%s: split pattern \"%.*s\" is none of the released ones, and this build lacks "
                   "PCRE2, which could run it",
                   shown, (int)(len < 200 ? len : 200), pattern);
}

static int step_pattern(const struct split_step *step, const char *text, const size_t *in, size_t n,
                        size_t base, struct cuts *out, dsv4_err *err)
{
    (void)step, (void)text, (void)in, (void)n, (void)base, (void)out;
    return err_set(err, DSV4_FAILED, "this build has no PCRE2");
}

static void code_free(void *code)
{
    (void)code;
}

#endif

/* ------------------------------------------------------------------ steps */

int split_add(struct splitter *s, const char *pattern, size_t len, const char *shown, dsv4_err *err)
{
    struct split_step step = {0};
    for (size_t i = 0; i < sizeof known / sizeof *known; i++)
        if (strlen(known[i].pattern) == len && memcmp(pattern, known[i].pattern, len) == 0)
            step.rules = known[i].rule;
    if (step.rules && s->n > 0 && s->step[s->n - 1].rules &&
        s->step[s->n - 1].rules < step.rules) { /* the released order: one pass does both */
        s->step[s->n - 1].rules |= step.rules;
        return 0;
    }
    TRY(mem_grow(&s->step, &s->cap, s->n + 1, sizeof *s->step, "split patterns", err));
    if (!step.rules)
        TRY(compile(&step.code, pattern, len, shown, err));
    s->step[s->n++] = step;
    return 0;
}

void split_close(struct splitter *s)
{
    for (size_t i = 0; i < s->n; i++)
        if (s->step[i].code)
            code_free(s->step[i].code);
    free(s->step);
    *s = (struct splitter){0};
}

static int step_machine(const struct split_step *step, const char *text, const size_t *in, size_t n,
                        size_t base, struct cuts *out, dsv4_err *err)
{
    size_t begin = 0;
    for (size_t i = 0; i < n; begin = in[i++])
        for (size_t at = begin; at < in[i];) {
            at = begin + split_next(step->rules, text + begin, in[i] - begin, at - begin);
            TRY(cut(out, base + at, err));
        }
    return 0;
}

int split_all(const struct splitter *s, const char *text, size_t len, size_t base, struct cuts *out,
              dsv4_err *err)
{
    if (len == 0)
        return 0;
    if (s->n == 0)
        return cut(out, base + len, err);
    struct cuts now = {0};
    int rc = cut(&now, len, err);
    for (size_t i = 0; i < s->n && rc == 0; i++) {
        bool last = i + 1 == s->n;
        struct cuts next = {0};
        struct cuts *to = last ? out : &next;
        rc = (s->step[i].rules ? step_machine : step_pattern)(&s->step[i], text, now.end, now.n,
                                                              last ? base : 0, to, err);
        free(now.end);
        now = next;
    }
    free(now.end);
    return rc;
}
