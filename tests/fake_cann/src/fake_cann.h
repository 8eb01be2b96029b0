/* Shared by the four parts of the stand-in CANN runtime. x86-64 Linux only (see launch.c). */
#ifndef FAKE_CANN_H
#define FAKE_CANN_H

#include <stddef.h>
#include <stdint.h>

/* The error codes of CANN that torch_npu tells apart (acl/acl_base_rt.h). */
enum {
    ACL_OK = 0,
    ACL_ERROR_RT_INVALID_DEVICE = 107001,
    ACL_ERROR_RT_CONTEXT_NULL = 107002,
    ACL_ERROR_RT_STREAM_CAPTURED = 107027,
    ACL_ERROR_RT_MEMORY_ALLOCATION = 207001,
    ACL_ERROR_OP_NOT_FOUND = 500002,
    ACL_ERROR_RT_DEV_SETUP = 507033,
    ACLNN_ERR_INNER = 561000,
};

/* What happened so far in this process; python/fake_cann/bridge.py mirrors the layout. */
struct counters {
    uint64_t host_to_device_copies, host_to_device_bytes;
    uint64_t device_to_host_copies, device_to_host_bytes;
    uint64_t device_to_device_copies, device_to_device_bytes;
    uint64_t synchronizations;
    uint64_t launches;          /* kernels that the host launched one by one */
    uint64_t captured;          /* kernels and copies recorded into graphs */
    uint64_t replays;           /* graphs launched */
};
extern struct counters counters;

/* One operator call: its arguments in order, with floating-point ones apart (as the x86-64 ABI passes them). */
#define MAX_ARGUMENTS 48
struct call {
    const char *name;
    int32_t count;
    uint64_t arguments[MAX_ARGUMENTS];
    double reals[8];
};

/* The Python side, which computes. Each returns an ACL error code. */
struct handlers {
    int (*run)(struct call *call);
    int (*graph)(int action, uint64_t graph);   /* enum graph_action */
    int (*copy)(void *destination, const void *source, size_t bytes);
};
enum graph_action { GRAPH_BEGIN, GRAPH_END, GRAPH_REPLAY, GRAPH_DESTROY };

struct handlers *python_handlers(void);
int is_capturing(void);
int env_int(const char *name, int fallback);
void set_error(const char *message);

#endif
