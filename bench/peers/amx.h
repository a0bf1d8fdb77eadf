/* GCC 12 declares AMX's tile instructions without saying what memory they read and write, so it may drop the stores that
 * fill a tile's configuration: llama.cpp then stops with an illegal instruction. Included before every source of its build.
 */
#if defined(__AMX_TILE__) && defined(__GNUC__) && !defined(__clang__)
#include <immintrin.h>
#define _tile_loadconfig(config) __asm__ volatile("ldtilecfg\t%0" ::"m"(*(const char(*)[64])(config)) : "memory")
#undef _tile_loadd
#define _tile_loadd(tile, base, stride)                                                          \
    __asm__ volatile("tileloadd\t(%0,%1,1), %%tmm" _vitrail_text(tile)                            \
                     ::"r"((const void *)(base)), "r"((long)(stride))                             \
                     : "memory")
#undef _tile_stored
#define _tile_stored(tile, base, stride)                                                         \
    __asm__ volatile("tilestored\t%%tmm" _vitrail_text(tile) ", (%0,%1,1)"                        \
                     ::"r"((void *)(base)), "r"((long)(stride))                                   \
                     : "memory")
#define _vitrail_text(tile) _vitrail_text_of(tile)
#define _vitrail_text_of(tile) #tile
#endif
