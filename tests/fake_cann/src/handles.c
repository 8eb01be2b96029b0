/* aclTensor, aclScalar, the arrays and lists: what torch_npu wraps an operator's arguments in (libnnopbase).
 *
 * All handles come from one arena, so that launch.c's Python side can tell a handle from a number by its address.
 */
#define _GNU_SOURCE
#include "fake_cann.h"

#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#define MAX_RANK 16
#define MAX_HANDLES (1 << 18)
#define LIVE 0xFA4EC0DEA5C3D21FULL

enum kind { NOT_A_HANDLE, TENSOR, SCALAR, INTS, FLOATS, BOOLS, TENSORS, SCALARS };

/* python/fake_cann/bridge.py mirrors the layout. */
struct handle {
    uint64_t live;
    int32_t kind;
    int32_t dtype;              /* aclDataType */
    int64_t rank;
    int64_t shape[MAX_RANK];
    int64_t strides[MAX_RANK];
    int64_t offset;             /* in elements, from data */
    void *data;
    int64_t count;              /* of items */
    void *items;
    uint8_t value[16];          /* a scalar's bytes */
};

static struct handle *arena;
static int *free_slots;
static int free_count, used_slots;
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;

static void make_arena(void) {
    size_t bytes = sizeof(struct handle) * (size_t)MAX_HANDLES;
    arena = mmap(0, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    free_slots = malloc(sizeof *free_slots * MAX_HANDLES);
}

static struct handle *new_handle(enum kind kind) {
    struct handle *handle;
    pthread_mutex_lock(&lock);
    if (!arena)
        make_arena();
    if (!free_count && used_slots == MAX_HANDLES) {
        fprintf(stderr, "fake CANN: %d live handles: something never destroys them\n", MAX_HANDLES);
        abort();
    }
    handle = arena + (free_count ? free_slots[--free_count] : used_slots++);
    pthread_mutex_unlock(&lock);
    memset(handle, 0, sizeof *handle);
    handle->live = LIVE;
    handle->kind = kind;
    return handle;
}

static int destroy(const void *pointer) {
    struct handle *handle = (struct handle *)pointer;
    if (!handle || handle->live != LIVE)
        return ACL_OK;
    handle->live = 0;
    free(handle->items);
    pthread_mutex_lock(&lock);
    free_slots[free_count++] = (int)(handle - arena);
    pthread_mutex_unlock(&lock);
    return ACL_OK;
}

/* enum kind of what the number points to; NOT_A_HANDLE for any other number. */
int fake_cann_kind(uint64_t number) {
    uint64_t first = (uint64_t)arena, end = (uint64_t)(arena + MAX_HANDLES);
    struct handle *handle = (struct handle *)number;
    if (!arena || number < first || number >= end || (number - first) % sizeof *handle)
        return NOT_A_HANDLE;
    return handle->live == LIVE ? handle->kind : NOT_A_HANDLE;
}

int fake_cann_live_handles(void) {
    return used_slots - free_count;
}

void *aclCreateTensor(const int64_t *shape, uint64_t rank, int dtype, const int64_t *strides, int64_t offset, int format,
                      const int64_t *storage_shape, uint64_t storage_rank, void *data) {
    struct handle *tensor = new_handle(TENSOR);
    (void)format, (void)storage_shape, (void)storage_rank;
    if (rank > MAX_RANK) {
        fprintf(stderr, "fake CANN: a tensor of rank %lu\n", (unsigned long)rank);
        abort();
    }
    tensor->dtype = dtype;
    tensor->rank = (int64_t)rank;
    memcpy(tensor->shape, shape, rank * sizeof *shape);
    if (strides)
        memcpy(tensor->strides, strides, rank * sizeof *strides);
    tensor->offset = offset;
    tensor->data = data;
    return tensor;
}

/* aclDataType -> bytes of an element, for the types that a scalar can have. */
static size_t element_size(int dtype) {
    switch (dtype) {
    case 1: case 6: case 7: case 27: return 2;   /* float16, int16, uint16, bfloat16 */
    case 0: case 3: case 8: return 4;            /* float32, int32, uint32 */
    case 9: case 10: case 11: case 16: return 8; /* int64, uint64, float64, complex64 */
    case 17: return 16;                          /* complex128 */
    default: return 1;
    }
}

void *aclCreateScalar(void *value, int dtype) {
    struct handle *scalar = new_handle(SCALAR);
    scalar->dtype = dtype;
    memcpy(scalar->value, value, element_size(dtype));
    return scalar;
}

static void *new_array(enum kind kind, const void *items, uint64_t count, size_t item_size) {
    struct handle *array = new_handle(kind);
    array->count = (int64_t)count;
    array->items = malloc(count * item_size + 1);
    memcpy(array->items, items, count * item_size);
    return array;
}

void *aclCreateIntArray(const int64_t *items, uint64_t count) {
    return new_array(INTS, items, count, sizeof *items);
}

void *aclCreateFloatArray(const float *items, uint64_t count) {
    return new_array(FLOATS, items, count, sizeof *items);
}

void *aclCreateBoolArray(const char *items, uint64_t count) {
    return new_array(BOOLS, items, count, sizeof *items);
}

void *aclCreateTensorList(void *const *items, uint64_t count) {
    return new_array(TENSORS, items, count, sizeof *items);
}

void *aclCreateScalarList(void *const *items, uint64_t count) {
    return new_array(SCALARS, items, count, sizeof *items);
}

int aclDestroyTensor(const void *handle) { return destroy(handle); }
int aclDestroyScalar(const void *handle) { return destroy(handle); }
int aclDestroyIntArray(const void *handle) { return destroy(handle); }
int aclDestroyFloatArray(const void *handle) { return destroy(handle); }
int aclDestroyBoolArray(const void *handle) { return destroy(handle); }

/* A list owns its members. */
int aclDestroyTensorList(const void *handle) {
    const struct handle *list = handle;
    if (list && list->live == LIVE)
        for (int64_t i = 0; i < list->count; i++)
            destroy(((void **)list->items)[i]);
    return destroy(handle);
}

int aclDestroyScalarList(const void *handle) {
    return aclDestroyTensorList(handle);
}

/* The caller frees the copy, as in CANN. */
static int copy_sizes(const int64_t *sizes, int64_t rank, int64_t **out, uint64_t *count) {
    *count = (uint64_t)rank;
    *out = malloc(sizeof **out * (size_t)(rank + 1));
    memcpy(*out, sizes, sizeof **out * (size_t)rank);
    return ACL_OK;
}

int aclGetViewShape(const void *handle, int64_t **shape, uint64_t *rank) {
    const struct handle *tensor = handle;
    return copy_sizes(tensor->shape, tensor->rank, shape, rank);
}

int aclGetViewStrides(const void *handle, int64_t **strides, uint64_t *rank) {
    const struct handle *tensor = handle;
    return copy_sizes(tensor->strides, tensor->rank, strides, rank);
}
