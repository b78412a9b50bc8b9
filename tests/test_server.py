"""dsv4-server over real sockets; the tests are in tests/server, a module a subject.

usage: python tests/test_server.py PROGRAM [NAME...]     (from the top of the tree; CHECK_LONG=1: the slow ones too)
"""

import sys
import time
import traceback

from server import framing, bodies, answers, clients, parameters, recipe, faults, machine, cache, description, hostile, agents  # noqa: F401 (they register tests)
from server.common import SKIPPED, TESTS, Server


def main():
    wanted = sys.argv[2:]
    passed = failed = 0
    shared = None
    for f in TESTS:
        if wanted and f.__name__ not in wanted:
            continue
        begun = time.time()
        try:
            if not shared or shared.p.poll() is not None:
                shared = Server()
            f(shared)
            passed += 1
            if wanted:
                print("%s: %.1f s" % (f.__name__, time.time() - begun))
        except BaseException:
            failed += 1
            print("FAILED: %s" % f.__name__)
            traceback.print_exc(limit=4, file=sys.stdout)
            if shared and shared.p.poll() is not None:
                print("the server ended with %d: %r" % (shared.p.returncode, shared.text()[-1000:]))
    if shared:
        code = shared.stop()
        if code != 0:
            failed += 1
            print("FAILED: the shared server ended with %d: %r" % (code, shared.text()[-600:]))
    for why in sorted(set(SKIPPED)):
        print("SKIP clients of dsv4-server: %s" % why)
    print("%d passed, %d failed%s" % (passed, failed, ", 1 skipped" if SKIPPED else ""))
    sys.exit(1 if failed else 0)


main()
