/* The driver's functions over the host's memory, with one GPU. What is captured are its copies from device to host. */
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#ifndef COUNT
#define COUNT 1
#endif
#ifndef INIT
#define INIT 0
#endif
#ifndef VERSION
#define VERSION 12080
#endif
#ifndef MAJOR
#define MAJOR 8
#endif

typedef struct {
    size_t sx, sy; unsigned stype; const void *shost; uint64_t source; void *sarray; size_t spitch;
    size_t tx, ty; unsigned ttype; void *thost; uint64_t target; void *tarray; size_t tpitch;
    size_t width, height;
} Copy2D;
typedef struct { void *target; uint64_t source; size_t size; } Download;

int live = 0, capturing = 0, captured = 0, current = 0, released = 0;
Download kept[8];
static __thread int mode = 0; /* of a thread: 0 minds what others capture for all threads */
int capturing_for_all = 0;

int cuInit(unsigned flags) { return flags ? 1 : INIT; }
int cuGetErrorName(int code, const char **text) { *text = code == 2 ? "CUDA_ERROR_OUT_OF_MEMORY" : "CUDA_ERROR_OTHER"; return 0; }
int cuGetErrorString(int code, const char **text) { *text = code == 2 ? "out of memory" : "other"; return 0; }
int cuDriverGetVersion(int *version) { *version = VERSION; return 0; }
int cuDeviceGetCount(int *count) { *count = COUNT; return 0; }
int cuDeviceGet(int *device, int number) { *device = 7 + number; return 0; }
int cuDeviceGetName(char *name, int size, int device) { strncpy(name, "Stub GPU", size); return device != 7; }
int cuDeviceGetAttribute(int *value, int attribute, int device) { *value = attribute == 75 ? MAJOR : MAJOR == 8 ? 6 : 0; return device != 7; }
int cuDevicePrimaryCtxRetain(void **context, int device) { *context = (void *)0x7fff12345678; return device != 7; }
int cuDevicePrimaryCtxRelease_v2(int device) { released++; return device != 7; }
int cuCtxSetCurrent(void *context) { current = context == (void *)0x7fff12345678; return !current; }
int cuThreadExchangeStreamCaptureMode(int *wanted) { int before = mode; mode = *wanted; *wanted = before; return 0; }
int cuMemGetInfo_v2(size_t *free, size_t *total) { *free = (size_t)5 << 30; *total = (size_t)8 << 30; return !current; }
int cuMemAlloc_v2(uint64_t *address, size_t size) {
    if (size > (size_t)8 << 30) return 2;
    if (capturing_for_all && mode == 0) return 900;
    *address = (uint64_t)malloc(size); live++; return 0;
}
int cuMemFree_v2(uint64_t address) { free((void *)address); live--; return 0; }
int cuMemHostAlloc(void **address, size_t size, unsigned flags) { *address = malloc(size); live++; return flags; }
int cuMemFreeHost(void *address) { free(address); live--; return 0; }
int cuStreamCreate(void **stream, unsigned flags) { *stream = malloc(1); live++; return flags != 1; }
int cuStreamDestroy_v2(void *stream) { free(stream); live--; return 0; }
int cuStreamSynchronize(void *stream) { return !stream || capturing; }
int cuMemsetD8Async(uint64_t address, unsigned char value, size_t size, void *stream) { memset((void *)address, value, size); return !stream; }
int cuMemcpyHtoDAsync_v2(uint64_t target, const void *source, size_t size, void *stream) { memcpy((void *)target, source, size); return !stream; }
int cuMemcpyDtoHAsync_v2(void *target, uint64_t source, size_t size, void *stream) {
    if (capturing) kept[captured++] = (Download){target, source, size};
    else memcpy(target, (void *)source, size);
    return !stream;
}
int cuMemcpy2DAsync_v2(const Copy2D *copy, void *stream) {
    if (copy->stype != 2 || copy->ttype != 2 || copy->sx || copy->ty) return 1;
    for (size_t row = 0; row < copy->height; row++)
        memcpy((char *)copy->target + row * copy->tpitch, (char *)copy->source + row * copy->spitch, copy->width);
    return !stream;
}
int cuStreamBeginCapture_v2(void *stream, int mode) { capturing = 1; return !stream || mode != 1; }
int cuStreamEndCapture(void *stream, void **graph) { capturing = 0; *graph = malloc(1); live++; return !stream; }
int cuGraphDestroy(void *graph) { free(graph); live--; return 0; }
int cuGraphInstantiateWithFlags(void **executable, void *graph, uint64_t flags) { *executable = malloc(1); live++; return !graph || flags; }
int cuGraphExecDestroy(void *executable) { free(executable); live--; return 0; }
int cuGraphLaunch(void *executable, void *stream) {
    for (int i = 0; i < captured; i++) memcpy(kept[i].target, (void *)kept[i].source, kept[i].size);
    return !executable || !stream;
}
