/* grammar_case.h - grammars over the embedded model's tokenizer, and texts that are tried on them. */
#ifndef TESTS_GRAMMAR_CASE_H
#define TESTS_GRAMMAR_CASE_H

#include "src/text/grammar.h"
#include "suite.h"

/* Helpers serve check_grammar's --walk and --bench too, where Check's own assertions cannot. */
extern bool testing;
void need(bool good, const char *what, const char *message);

#undef OK
#define OK(call)   need((call) == 0, #call, err.text)
#define NEED(good) need(good, #good, "false")

/* A fixture of all tests. */
extern dsv4_tokenizer *tok;
void open_nano(void);
void close_nano(void);

enum verdict { REFUSED, UNFINISHED, FITS };

/* The same whether the text comes in the tokenizer's tokens or byte by byte. Control tokens
 * count. */
enum verdict try_text(const dsv4_grammar *g, const char *text);

/* A list of texts; in a list of both, a text behind "!" must not fit. */
void try_all(const dsv4_grammar *g, const char *what, const char *const *texts);

dsv4_grammar *open_schema(const char *schema);

/* Three tools: weather, search, now. */
extern const char tools_json[];
dsv4_grammar *open_tools(dsv4_dialect d, dsv4_tool_mode mode, const char *name, bool parallel);

/* Writes $B, $I, $P as the dialect's tags. */
const char *tagged(dsv4_dialect d, const char *text);

#endif
