/* http.h - what the files around libmicrohttpd share: http.c (connections and the loop), http_judge.c (what
 * is said of a request before its body is there), http_reply.c (replies). HTTP's thread alone calls these. */
#ifndef DSV4_SERVER_HTTP_H
#define DSV4_SERVER_HTTP_H

#include <microhttpd.h>

#include "server.h"

/* A header's value, "" when it is not there. */
const char *http_header(struct MHD_Connection *con, const char *name);

/* Whether the request may go on to its body: fills in route, client, scope, origin; -1 and *f otherwise. */
int http_judge(struct MHD_Connection *con, struct exchange *x, const char *url, const char *method,
               const char *version, struct failure *f);
bool http_has_body(struct MHD_Connection *con);

/* Hands the reply to the library if it is known; MHD_YES also when it is not yet. */
enum MHD_Result http_answer(struct MHD_Connection *con, struct exchange *x, bool close_after);

/* The library has more to do than it says: it is to be run again at once. */
void http_again(struct http *h);

#endif
