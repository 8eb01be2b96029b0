/* Devices, memory, streams and events of the stand-in CANN runtime.
 *
 * "Device memory" is host memory, accounted per device against a limit. Everything runs at once, in the caller's
 * thread, so streams and events are only names; what a program would wait for is counted instead.
 */
#define _GNU_SOURCE
#include "fake_cann.h"

#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <time.h>

#define MAX_DEVICES 16

struct counters counters;

static __thread int current_device = -1;
static __thread char last_error[2048] = "";
static size_t used_bytes[MAX_DEVICES];
static pthread_mutex_t memory_lock = PTHREAD_MUTEX_INITIALIZER;

int env_int(const char *name, int fallback) {
    const char *text = getenv(name);
    return text && *text ? atoi(text) : fallback;
}

void set_error(const char *message) {
    snprintf(last_error, sizeof last_error, "%s", message);
}

/* The text that torch_npu appends to its exceptions. */
const char *aclGetRecentErrMsg(void) {
    return last_error;
}

void fake_cann_counters(struct counters *out) {
    *out = counters;
}

/* ---- devices ---- */

static int device_count(void) {
    return env_int("FAKE_CANN_DEVICES", 1);
}

static int device_or_first(void) {
    return current_device < 0 ? 0 : current_device;
}

int aclInit(const char *config) {
    (void)config;
    return ACL_OK;
}

int aclrtGetDeviceCount(uint32_t *count) {
    *count = (uint32_t)device_count();
    return ACL_OK;
}

int aclrtSetDevice(int32_t device) {
    if (device < 0 || device >= device_count()) {
        set_error("no such device");
        return ACL_ERROR_RT_INVALID_DEVICE;
    }
    if (env_int("FAKE_CANN_BUSY", 0)) {
        set_error("device setup failed: another process holds the device");
        return ACL_ERROR_RT_DEV_SETUP;
    }
    current_device = device;
    return ACL_OK;
}

int aclrtGetDevice(int32_t *device) {
    if (current_device < 0)
        return ACL_ERROR_RT_CONTEXT_NULL;
    *device = current_device;
    return ACL_OK;
}

/* A context is its device's number, shifted so that it is never null. */
int aclrtGetCurrentContext(void **context) {
    *context = (void *)(intptr_t)(0x1000 + device_or_first());
    return ACL_OK;
}

int aclrtSetCurrentContext(void *context) {
    current_device = (int)((intptr_t)context - 0x1000);
    return ACL_OK;
}

int aclrtGetPrimaryCtxState(int32_t device, uint32_t *flags, int32_t *active) {
    (void)flags;
    *active = device == current_device;
    return ACL_OK;
}

const char *aclrtGetSocName(void) {
    const char *name = getenv("FAKE_CANN_SOC");
    return name && *name ? name : "Ascend910B3";
}

int aclGetDeviceCapability(uint32_t device, int info, int64_t *value) {
    (void)device, (void)info;
    *value = 24; /* AI cores */
    return ACL_OK;
}

int aclrtGetDeviceInfo(uint32_t device, int attribute, int64_t *value) {
    return aclGetDeviceCapability(device, attribute, value);
}

int aclrtDeviceCanAccessPeer(int32_t *can, int32_t device, int32_t peer) {
    (void)device, (void)peer;
    *can = 1;
    return ACL_OK;
}

/* ---- memory ---- */

/* A range of addresses of one device. */
struct range {
    char *start;
    size_t bytes;
    int device;
    struct range *next;
};
static struct range *ranges;

static size_t device_bytes(void) {
    return (size_t)env_int("FAKE_CANN_MEMORY_MB", 65536) << 20;
}

/* Takes bytes from the current device's account; 0 when they are not left. */
static int reserve(size_t bytes) {
    int fits;
    pthread_mutex_lock(&memory_lock);
    fits = used_bytes[device_or_first()] + bytes <= device_bytes();
    if (fits)
        used_bytes[device_or_first()] += bytes;
    pthread_mutex_unlock(&memory_lock);
    return fits;
}

/* Pages are given by the system on first touch, so a 64 GiB device costs nothing until it is written to. They are shared,
 * so that the system counts them apart from the anonymous memory of the program, which stands for the host. */
static void *lazy_pages(size_t bytes) {
    void *address = mmap(0, bytes, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    return address == MAP_FAILED ? NULL : address;
}

/* Address space of the current device, without an account; NULL when there is none. */
static void *add_range(size_t bytes) {
    struct range *range = malloc(sizeof *range);
    *range = (struct range){lazy_pages(bytes), bytes, device_or_first(), NULL};
    if (!range->start) {
        free(range);
        return NULL;
    }
    pthread_mutex_lock(&memory_lock);
    range->next = ranges;
    ranges = range;
    pthread_mutex_unlock(&memory_lock);
    return range->start;
}

/* Gives the addresses back; `accounted` bytes of them were taken from the device's memory. */
static void remove_range(void *start, int accounted) {
    struct range *range, **link;
    pthread_mutex_lock(&memory_lock);
    for (link = &ranges; *link && (*link)->start != start; link = &(*link)->next)
        ;
    range = *link;
    if (range) {
        *link = range->next;
        if (accounted)
            used_bytes[range->device] -= range->bytes;
    }
    pthread_mutex_unlock(&memory_lock);
    if (range)
        munmap(range->start, range->bytes);
    free(range);
}

int aclrtMalloc(void **address, size_t bytes, int policy) {
    (void)policy;
    if (!reserve(bytes))
        return ACL_ERROR_RT_MEMORY_ALLOCATION;
    *address = add_range(bytes);
    return *address ? ACL_OK : ACL_ERROR_RT_MEMORY_ALLOCATION;
}

int aclrtMallocAlign32(void **address, size_t bytes, int policy) {
    return aclrtMalloc(address, bytes, policy);
}

int aclrtFree(void *address) {
    remove_range(address, 1);
    return ACL_OK;
}

/* The device whose memory holds the address, or -1 for host memory. */
int fake_cann_owner(const char *address) {
    int device = -1;
    struct range *range;
    pthread_mutex_lock(&memory_lock);
    for (range = ranges; range && device < 0; range = range->next)
        if (address >= range->start && address < range->start + range->bytes)
            device = range->device;
    pthread_mutex_unlock(&memory_lock);
    return device;
}

int aclrtGetMemInfo(int attribute, size_t *free_bytes, size_t *total_bytes) {
    (void)attribute;
    *total_bytes = device_bytes();
    *free_bytes = device_bytes() - used_bytes[device_or_first()];
    return ACL_OK;
}

int aclrtMallocHost(void **address, size_t bytes) {
    return posix_memalign(address, 64, bytes ? bytes : 64);
}

int aclrtFreeHost(void *address) {
    free(address);
    return ACL_OK;
}

/* Virtual memory (expandable segments): addresses are reserved at once, the account is charged for physical memory. */
int aclrtReserveMemAddress(void **address, size_t bytes, size_t alignment, void *expected, uint64_t flags) {
    (void)alignment, (void)expected, (void)flags;
    *address = add_range(bytes);
    return *address ? ACL_OK : ACL_ERROR_RT_MEMORY_ALLOCATION;
}

int aclrtReleaseMemAddress(void *address) {
    remove_range(address, 0);
    return ACL_OK;
}

struct physical {
    size_t bytes;
    int device;
};

int aclrtMallocPhysical(void **handle, size_t bytes, const void *properties, uint64_t flags) {
    struct physical *physical;
    (void)properties, (void)flags;
    if (!reserve(bytes))
        return ACL_ERROR_RT_MEMORY_ALLOCATION;
    physical = malloc(sizeof *physical);
    *physical = (struct physical){bytes, device_or_first()};
    *handle = physical;
    return ACL_OK;
}

int aclrtFreePhysical(void *handle) {
    struct physical *physical = handle;
    pthread_mutex_lock(&memory_lock);
    used_bytes[physical->device] -= physical->bytes;
    pthread_mutex_unlock(&memory_lock);
    free(physical);
    return ACL_OK;
}

/* ---- copies ---- */

static void count_copy(size_t bytes, int kind) {
    uint64_t *pairs[] = {NULL, &counters.host_to_device_copies, &counters.device_to_host_copies,
                         &counters.device_to_device_copies};
    if (kind < 1 || kind > 3)
        return;
    pairs[kind][0] += 1;
    pairs[kind][1] += bytes;
}

int aclrtMemcpy(void *destination, size_t limit, const void *source, size_t bytes, int kind) {
    (void)limit;
    memmove(destination, source, bytes);
    count_copy(bytes, kind);
    return ACL_OK;
}

int aclrtMemcpyAsync(void *destination, size_t limit, const void *source, size_t bytes, int kind, void *stream) {
    (void)stream;
    if (!is_capturing())
        return aclrtMemcpy(destination, limit, source, bytes, kind);
    if (kind != 3) {
        set_error("a copy between host and device cannot be captured into a graph");
        return ACL_ERROR_RT_STREAM_CAPTURED;
    }
    counters.captured++;
    return python_handlers()->copy(destination, source, bytes);
}

int aclrtMemset(void *address, size_t limit, int32_t value, size_t bytes) {
    (void)limit;
    memset(address, value, bytes);
    return ACL_OK;
}

int aclrtMemsetAsync(void *address, size_t limit, int32_t value, size_t bytes, void *stream) {
    (void)stream;
    return aclrtMemset(address, limit, value, bytes);
}

/* ---- streams, events and waiting ---- */

static intptr_t next_stream = 0x7000;

int aclrtCreateStream(void **stream) {
    *stream = (void *)(next_stream += 16);
    return ACL_OK;
}

int aclrtCreateStreamWithConfig(void **stream, uint32_t priority, uint32_t flags) {
    (void)priority, (void)flags;
    return aclrtCreateStream(stream);
}

int aclrtStreamGetId(void *stream, int32_t *id) {
    *id = (int32_t)((intptr_t)stream & 0xffff);
    return ACL_OK;
}

int aclrtStreamQuery(void *stream, int *complete) {
    (void)stream;
    *complete = 0;
    return ACL_OK;
}

static int synchronize(void) {
    counters.synchronizations++;
    if (!is_capturing())
        return ACL_OK;
    set_error("a stream cannot be waited for while it is captured into a graph");
    return ACL_ERROR_RT_STREAM_CAPTURED;
}

int aclrtSynchronizeStream(void *stream) {
    (void)stream;
    return synchronize();
}

int aclrtSynchronizeStreamWithTimeout(void *stream, int32_t timeout) {
    (void)stream, (void)timeout;
    return synchronize();
}

int aclrtSynchronizeDevice(void) {
    return synchronize();
}

int aclrtSynchronizeDeviceWithTimeout(int32_t timeout) {
    (void)timeout;
    return synchronize();
}

int aclrtSynchronizeEvent(void *event) {
    (void)event;
    return synchronize();
}

/* An event is the time at which it was recorded. */
int aclrtCreateEventExWithFlag(void **event, uint32_t flags) {
    (void)flags;
    *event = calloc(1, sizeof(struct timespec));
    return ACL_OK;
}

int aclrtCreateEventWithFlag(void **event, uint32_t flags) {
    return aclrtCreateEventExWithFlag(event, flags);
}

int aclrtDestroyEvent(void *event) {
    free(event);
    return ACL_OK;
}

int aclrtRecordEvent(void *event, void *stream) {
    (void)stream;
    clock_gettime(CLOCK_MONOTONIC, event);
    return ACL_OK;
}

int aclrtQueryEventStatus(void *event, int *status) {
    (void)event;
    *status = 1; /* ACL_EVENT_RECORDED_STATUS_COMPLETE */
    return ACL_OK;
}

int aclrtQueryEventWaitStatus(void *event, int *status) {
    (void)event;
    *status = 0; /* ACL_EVENT_WAIT_STATUS_COMPLETE */
    return ACL_OK;
}

int aclrtEventElapsedTime(float *milliseconds, void *start, void *end) {
    struct timespec *a = start, *b = end;
    *milliseconds = (float)(b->tv_sec - a->tv_sec) * 1e3f + (float)(b->tv_nsec - a->tv_nsec) * 1e-6f;
    return ACL_OK;
}

/* ---- settings: accepted, without effect ---- */

size_t aclGetCompileoptSize(int option) {
    (void)option;
    return 256;
}

/* The only option that torch_npu reads is jit_compile, which is off on 910B. */
int aclGetCompileopt(int option, char *value, size_t size) {
    (void)option;
    snprintf(value, size, "disable");
    return ACL_OK;
}

int aclrtGetSysParamOpt(int option, int64_t *value) {
    (void)option;
    *value = 0;
    return ACL_OK;
}

int aclrtCtxGetSysParamOpt(int option, int64_t *value) {
    return aclrtGetSysParamOpt(option, value);
}

int aclrtGetStreamOverflowSwitch(void *stream, uint32_t *flag) {
    (void)stream;
    *flag = 0;
    return ACL_OK;
}

/* In the x86-64 ABI a function may ignore its arguments, so one definition does for all of these. */
#define ACCEPT(name) int name(void) { return ACL_OK; }
ACCEPT(aclFinalize)
ACCEPT(aclrtMapMem)
ACCEPT(aclrtUnmapMem)
ACCEPT(aclrtResetDevice)
ACCEPT(aclrtDeviceEnablePeerAccess)
ACCEPT(aclrtDestroyStream)
ACCEPT(aclrtDestroyStreamForce)
ACCEPT(aclrtStreamWaitEvent)
ACCEPT(aclrtResetEvent)
ACCEPT(aclrtProcessReport)
ACCEPT(aclrtGetLastError)
ACCEPT(aclrtPeekAtLastError)
ACCEPT(aclrtSetDeviceSatMode)
ACCEPT(aclrtSetOpExecuteTimeOut)
ACCEPT(aclrtSetOpWaitTimeout)
ACCEPT(aclrtSetStreamFailureMode)
ACCEPT(aclrtSetStreamOverflowSwitch)
ACCEPT(aclrtSetSysParamOpt)
ACCEPT(aclrtCtxSetSysParamOpt)
ACCEPT(aclSetCompileopt)
ACCEPT(aclopSetCompileFlag)
ACCEPT(aclAppLog)
ACCEPT(MsprofSysCycleTime)
