/* Graphs (aclmdlRI): between begin and end nothing runs; calls and device copies are recorded by the Python side.
 *
 * One capture at a time, for the whole process.
 */
#include "fake_cann.h"

static int capturing;
static uint64_t last_graph;

int is_capturing(void) {
    return capturing;
}

int aclmdlRICaptureBegin(void *stream, int mode) {
    (void)stream, (void)mode;
    capturing = 1;
    return python_handlers()->graph(GRAPH_BEGIN, ++last_graph);
}

int aclmdlRICaptureGetInfo(void *stream, int *status, void **graph) {
    (void)stream;
    *status = capturing;
    *graph = (void *)last_graph;
    return ACL_OK;
}

int aclmdlRICaptureEnd(void *stream, void **graph) {
    (void)stream;
    capturing = 0;
    *graph = (void *)last_graph;
    return python_handlers()->graph(GRAPH_END, last_graph);
}

int aclmdlRIExecuteAsync(void *graph, void *stream) {
    (void)stream;
    counters.replays++;
    return python_handlers()->graph(GRAPH_REPLAY, (uint64_t)graph);
}

int aclmdlRIDestroy(void *graph) {
    return python_handlers()->graph(GRAPH_DESTROY, (uint64_t)graph);
}

int aclmdlRIGetId(void *graph, uint32_t *id) {
    *id = (uint32_t)(uint64_t)graph;
    return ACL_OK;
}

int aclmdlRIDebugPrint(void *graph) {
    (void)graph;
    return ACL_OK;
}

int aclmdlRICaptureThreadExchangeMode(int *mode) {
    (void)mode;
    return ACL_OK;
}
