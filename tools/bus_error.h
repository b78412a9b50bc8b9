/* bus_error.h - a mapped file that becomes shorter under us, or whose disk is gone, ends the process with a message. */
#ifndef DSV4_BUS_ERROR_H
#define DSV4_BUS_ERROR_H

/* `program` begins the message; the file is named where the system tells (/proc/self/maps). Exit code 3. */
void bus_error_catch(const char *program);

#endif
