#include "bf16x3.h"

#include <algorithm>
#include <cstdlib>
#include <new>

#include <ATen/Parallel.h>
#include <ATen/ops/empty.h>

#if defined(__x86_64__)

#include <immintrin.h>
#include <sys/mman.h>

namespace shipreid {
namespace {

#define TILES __attribute__((target("avx512f,avx512bw,avx512vl,avx512dq,avx512bf16,amx-tile,amx-bf16")))

// A tile has 16 rows of 32 numbers. A strip is 16 rows of an operand: for each 32 of its depth (a step) three tiles.
constexpr int64_t ROWS = 16;
constexpr int64_t DEPTH = 32;
constexpr int64_t TILE = ROWS * DEPTH;
constexpr int64_t STEP = 3 * TILE;
// Sums are formed in blocks of 2 x 2 tiles; of the right operand, the two strips of a block alternate step by step.
constexpr int64_t BLOCK = 2 * ROWS;
constexpr int64_t PAIR = 2 * STEP;
// Of the left operand, so many blocks of rows and steps stay in the second-level cache (2 MiB).
constexpr int64_t LEFT_BLOCKS = 6;
constexpr int64_t STEPS = 24;
constexpr int64_t LINE = 64;
// Lines of a step of the right operand's block.
constexpr int64_t PAIR_LINES = PAIR * 2 / LINE;

int64_t ceil_div(int64_t count, int64_t unit) { return (count + unit - 1) / unit; }

// The first `count` of 16 lanes.
TILES inline __mmask16 first_lanes(int64_t count) {
    return count >= 16 ? 0xffff : count <= 0 ? 0 : static_cast<__mmask16>((1u << count) - 1);
}

// A tile's rows in registers, for each of the three parts.
struct Parts {
    __m512i of[3][ROWS];
};

// Numbers in bf16, in f32.
TILES inline __m512 widened(__m256i halves) {
    return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(halves), 16));
}

// Row `row` from 32 numbers along the depth.
TILES inline void split_row(__m512 first, __m512 second, int row, Parts &parts) {
    for (int part = 0; part < 3; part++) {
        const auto rounded = reinterpret_cast<__m512i>(_mm512_cvtne2ps_pbh(second, first));
        parts.of[part][row] = rounded;
        first = _mm512_sub_ps(first, widened(_mm512_castsi512_si256(rounded)));
        second = _mm512_sub_ps(second, widened(_mm512_extracti64x4_epi64(rounded, 1)));
    }
}

// Row `row` from 16 pairs: the numbers at an even depth, and those that follow them.
TILES inline void split_pairs(__m512 even, __m512 odd, int row, Parts &parts) {
    for (int part = 0; part < 3; part++) {
        const __m512 even_rounded = widened(reinterpret_cast<__m256i>(_mm512_cvtneps_pbh(even)));
        const __m512 odd_rounded = widened(reinterpret_cast<__m256i>(_mm512_cvtneps_pbh(odd)));
        parts.of[part][row] = _mm512_or_si512(_mm512_srli_epi32(_mm512_castps_si512(even_rounded), 16),
                                              _mm512_castps_si512(odd_rounded));
        even = _mm512_sub_ps(even, even_rounded);
        odd = _mm512_sub_ps(odd, odd_rounded);
    }
}

// 16 x 16 numbers of 32 bits.
TILES inline void transpose(__m512i *rows) {
    __m512i turned[16];
    for (int i = 0; i < 8; i++) {
        turned[2 * i] = _mm512_unpacklo_epi32(rows[2 * i], rows[2 * i + 1]);
        turned[2 * i + 1] = _mm512_unpackhi_epi32(rows[2 * i], rows[2 * i + 1]);
    }
    for (int i = 0; i < 4; i++) {
        rows[4 * i] = _mm512_unpacklo_epi64(turned[4 * i], turned[4 * i + 2]);
        rows[4 * i + 1] = _mm512_unpackhi_epi64(turned[4 * i], turned[4 * i + 2]);
        rows[4 * i + 2] = _mm512_unpacklo_epi64(turned[4 * i + 1], turned[4 * i + 3]);
        rows[4 * i + 3] = _mm512_unpackhi_epi64(turned[4 * i + 1], turned[4 * i + 3]);
    }
    for (int i = 0; i < 4; i++) {
        turned[i] = _mm512_shuffle_i32x4(rows[i], rows[4 + i], 0x88);
        turned[4 + i] = _mm512_shuffle_i32x4(rows[i], rows[4 + i], 0xdd);
        turned[8 + i] = _mm512_shuffle_i32x4(rows[8 + i], rows[12 + i], 0x88);
        turned[12 + i] = _mm512_shuffle_i32x4(rows[8 + i], rows[12 + i], 0xdd);
    }
    for (int i = 0; i < 4; i++) {
        rows[i] = _mm512_shuffle_i32x4(turned[i], turned[8 + i], 0x88);
        rows[8 + i] = _mm512_shuffle_i32x4(turned[i], turned[8 + i], 0xdd);
        rows[4 + i] = _mm512_shuffle_i32x4(turned[4 + i], turned[12 + i], 0x88);
        rows[12 + i] = _mm512_shuffle_i32x4(turned[4 + i], turned[12 + i], 0xdd);
    }
}

enum class Side { Left, Right };

// The operand's strip from `row` on, from depth `from` to `to`, zeros behind its ends. On the left a tile has a row for
// each of the operand's; on the right it has one for each pair of depths. Steps are `stride` apart.
TILES void pack(const Operand &operand, int64_t row, int64_t from, int64_t to, Side side, int64_t stride,
                at::BFloat16 *strip) {
    const int64_t count = std::clamp<int64_t>(operand.rows - row, 0, ROWS);
    Parts parts;
    for (int64_t k = from; k < to; k += DEPTH, strip += stride) {
        const int64_t left = to - k;
        const float *data = operand.data + row * operand.row_stride + k * operand.depth_stride;
        const bool is_by_row = operand.depth_stride == 1;
        for (int i = 0; i < ROWS; i++) {
            if (is_by_row) {
                const auto lanes = [&](int64_t start) TILES { return i < count ? first_lanes(left - start) : 0; };
                const float *numbers = data + (i < count ? i * operand.row_stride : 0);
                split_row(_mm512_maskz_loadu_ps(lanes(0), numbers), _mm512_maskz_loadu_ps(lanes(16), numbers + 16), i,
                          parts);
            } else {
                const auto lanes = [&](int64_t depth) TILES { return depth < left ? first_lanes(count) : 0; };
                const float *numbers = data + (2 * i < left ? 2 * i * operand.depth_stride : 0);
                // Of the next step: no hardware foresees lines that far apart.
                __builtin_prefetch(numbers + DEPTH * operand.depth_stride);
                __builtin_prefetch(numbers + (DEPTH + 1) * operand.depth_stride);
                split_pairs(_mm512_maskz_loadu_ps(lanes(2 * i), numbers),
                            _mm512_maskz_loadu_ps(lanes(2 * i + 1), numbers + operand.depth_stride), i, parts);
            }
        }
        at::BFloat16 *to_row = strip;
        for (auto &part : parts.of) {
            if (is_by_row == (side == Side::Right)) {
                transpose(part);
            }
            for (const __m512i &of_row : part) {
                _mm512_store_si512(to_row, of_row);
                to_row += DEPTH;
            }
        }
    }
}

// Eight tiles of full size, for as long as it lives.
class Tiles {
  public:
    TILES Tiles() {
        struct alignas(64) {
            uint8_t palette = 1, start_row = 0, reserved[14] = {};
            uint16_t row_bytes[16] = {};
            uint8_t rows[16] = {};
        } shapes;
        for (int tile = 0; tile < 8; tile++) {
            shapes.row_bytes[tile] = 64;
            shapes.rows[tile] = ROWS;
        }
        _tile_loadconfig(&shapes);
    }
    TILES ~Tiles() { _tile_release(); }
    Tiles(const Tiles &) = delete;
    Tiles &operator=(const Tiles &) = delete;
};

inline void fetch_tiles(const at::BFloat16 *tiles, int64_t first, int64_t last) {
    for (int64_t line = first * 16; line < last * 16; line++) {
        __builtin_prefetch(reinterpret_cast<const char *>(tiles) + line * LINE);
    }
}

// What is fetched into the second-level cache while sums are formed: `lines` in every step.
struct Ahead {
    const char *place;
    int64_t lines;

    void fetch() {
        for (int64_t line = 0; line < lines; line++, place += LINE) {
            __builtin_prefetch(place, 0, 2);
        }
    }
};

// Sums of a block from two strips of the left side, or one, and a block of the right, as four tiles one after the other, of
// which the last two are not written for one strip. `next` is the left side's two strips that are needed after these,
// `left_stride` apart like these.
template <int STRIPS>
TILES inline void sum(const at::BFloat16 *left, const at::BFloat16 *next, int64_t left_stride, const at::BFloat16 *right,
                      int64_t steps, Ahead &ahead, float *sums) {
#define LEFT(part)                                                                                                     \
    _tile_loadd(4, left + (part) * TILE, LINE);                                                                        \
    if constexpr (STRIPS == 2) {                                                                                       \
        _tile_loadd(5, left + left_stride + (part) * TILE, LINE);                                                      \
    }
#define RIGHT(part)                                                                                                    \
    _tile_loadd(6, right + (part) * TILE, LINE);                                                                       \
    _tile_loadd(7, right + STEP + (part) * TILE, LINE);
#define MULTIPLY                                                                                                       \
    _tile_dpbf16ps(0, 4, 6);                                                                                           \
    _tile_dpbf16ps(1, 4, 7);                                                                                           \
    if constexpr (STRIPS == 2) {                                                                                       \
        _tile_dpbf16ps(2, 5, 6);                                                                                       \
        _tile_dpbf16ps(3, 5, 7);                                                                                       \
    }
    _tile_zero(0);
    _tile_zero(1);
    _tile_zero(2);
    _tile_zero(3);
    for (; steps > 0; steps--) {
        const at::BFloat16 *first = steps > 1 ? left + STEP : next, *second = first + left_stride;
        // Small products first, and in an order in which one side's tiles stay.
        LEFT(0) RIGHT(2) fetch_tiles(first, 0, 1);
        ahead.fetch();
        MULTIPLY RIGHT(1) fetch_tiles(first, 1, 2);
        MULTIPLY LEFT(1) fetch_tiles(first, 2, 3);
        MULTIPLY RIGHT(0) fetch_tiles(second, 0, 1);
        MULTIPLY LEFT(2) fetch_tiles(second, 1, 2);
        MULTIPLY LEFT(0) fetch_tiles(second, 2, 3);
        MULTIPLY left += STEP, right += PAIR;
    }
    _tile_stored(0, sums, LINE);
    _tile_stored(1, sums + 256, LINE);
    if constexpr (STRIPS == 2) {
        _tile_stored(2, sums + 512, LINE);
        _tile_stored(3, sums + 768, LINE);
    }
#undef LEFT
#undef RIGHT
#undef MULTIPLY
}

// Where sums go. If `is_turned`, the block's rows are columns of `out`.
struct Output {
    float *data;
    int64_t rows, columns;
    Addends addends;
    bool is_turned;

    // Fetches what a block will be written to.
    void fetch(int64_t row, int64_t column) const {
        for (int64_t line = row; line < std::min(row + BLOCK, rows); line++) {
            __builtin_prefetch(data + line * columns + column, 1);
            __builtin_prefetch(data + line * columns + std::min(column + ROWS, columns - 1), 1);
        }
    }

    // Writes one tile, or adds it to what is there.
    TILES void write(int64_t row, int64_t column, const float *sums, bool adds) const {
        const __mmask16 lanes = first_lanes(columns - column);
        __m512i tile[ROWS];
        for (int i = 0; i < ROWS; i++) {
            tile[i] = _mm512_load_si512(sums + i * ROWS);
        }
        if (is_turned) {
            transpose(tile);
        }
        const __m512 zero = _mm512_setzero_ps();
        const __m512 bias = addends.bias == nullptr ? zero : _mm512_maskz_loadu_ps(lanes, addends.bias + column);
        for (int64_t i = 0; i < std::min(ROWS, rows - row); i++) {
            const int64_t place = (row + i) * columns + column;
            const auto start = [&]() TILES {
                return addends.residual == nullptr
                           ? bias
                           : _mm512_add_ps(bias, _mm512_maskz_loadu_ps(lanes, addends.residual + place));
            };
            const __m512 earlier = adds ? _mm512_maskz_loadu_ps(lanes, data + place) : start();
            _mm512_mask_storeu_ps(data + place, lanes, _mm512_add_ps(earlier, _mm512_castsi512_ps(tile[i])));
        }
    }
};

// A thread's strips of the left operand, on large pages.
class Strips {
  public:
    Strips() {
        constexpr size_t size = 2 * LEFT_BLOCKS * STEPS * STEP * sizeof(at::BFloat16);
        constexpr size_t page = size_t{2} << 20;
        constexpr size_t whole = (size + page - 1) / page * page;
        strips = static_cast<at::BFloat16 *>(std::aligned_alloc(page, whole));
        if (strips == nullptr) {
            throw std::bad_alloc();
        }
        madvise(strips, whole, MADV_HUGEPAGE);
    }
    ~Strips() { std::free(strips); }
    Strips(const Strips &) = delete;
    Strips &operator=(const Strips &) = delete;

    at::BFloat16 *strips;
};

struct Product {
    Operand left;
    const at::BFloat16 *right;
    int64_t right_blocks;
    int64_t depth;
    Output output;

    // The rows from `from` to `to` in blocks, at most LEFT_BLOCKS.
    TILES void rows(int64_t from, int64_t to) const {
        static thread_local const Strips scratch;
        const Tiles tiles;
        alignas(64) float sums[4 * ROWS * ROWS];
        const int64_t steps = ceil_div(depth, DEPTH), parts = ceil_div(steps, STEPS);
        // The last block may have rows in its first strip only.
        const int64_t strips = std::min(2 * (to - from), ceil_div(left.rows, ROWS) - 2 * from);
        for (int64_t part = 0; part < parts; part++) {
            const int64_t first = steps * part / parts, count = steps * (part + 1) / parts - first;
            const int64_t left_stride = count * STEP;
            for (int64_t strip = 0; strip < strips; strip++) {
                pack(left, from * BLOCK + strip * ROWS, first * DEPTH, std::min((first + count) * DEPTH, depth), Side::Left,
                     STEP, scratch.strips + strip * left_stride);
            }
            for (int64_t column = 0; column < right_blocks; column++) {
                const at::BFloat16 *block = right + (column * steps + first) * PAIR;
                Ahead ahead{reinterpret_cast<const char *>(block + steps * PAIR), ceil_div(PAIR_LINES, to - from)};
                for (int64_t row = from; row < to; row++) {
                    const auto place = [&](int64_t block) { return scratch.strips + 2 * (block - from) * left_stride; };
                    const auto [i, j] = output.is_turned ? std::pair(column, row) : std::pair(row, column);
                    output.fetch(i * BLOCK, j * BLOCK);
                    const at::BFloat16 *next = place(row + 1 < to ? row + 1 : from);
                    const bool has_two = 2 * (row - from) + 1 < strips;
                    if (has_two) {
                        sum<2>(place(row), next, left_stride, block, count, ahead, sums);
                    } else {
                        sum<1>(place(row), next, left_stride, block, count, ahead, sums);
                    }
                    for (int64_t tile = 0; tile < (has_two ? 4 : 2); tile++) {
                        const int64_t down = output.is_turned ? tile % 2 : tile / 2, across = output.is_turned ? tile / 2 : tile % 2;
                        output.write(i * BLOCK + down * ROWS, j * BLOCK + across * ROWS, sums + tile * 256, part > 0);
                    }
                }
            }
        }
    }

    // All rows, shared out among the threads.
    void run() const {
        const int64_t blocks = ceil_div(left.rows, BLOCK);
        const int64_t threads = std::max(1, at::get_num_threads());
        const int64_t shares = std::min(blocks, ceil_div(ceil_div(blocks, LEFT_BLOCKS), threads) * threads);
        at::parallel_for(0, shares, 1, [&](int64_t from, int64_t to) {
            for (int64_t share = from; share < to; share++) {
                rows(blocks * share / shares, blocks * (share + 1) / shares);
            }
        });
    }
};

} // namespace

at::Tensor split_bf16x3(const Operand &right, int64_t depth) {
    const int64_t blocks = ceil_div(right.rows, BLOCK), size = ceil_div(depth, DEPTH) * PAIR;
    const at::Tensor split = at::empty({blocks * size}, at::kBFloat16);
    auto *strips = split.mutable_data_ptr<at::BFloat16>();
    at::parallel_for(0, 2 * blocks, 1, [&](int64_t from, int64_t to) {
        for (int64_t strip = from; strip < to; strip++) {
            pack(right, strip * ROWS, 0, depth, Side::Right, PAIR, strips + strip / 2 * size + strip % 2 * STEP);
        }
    });
    return split;
}

void multiply_bf16x3(const Operand &left, const at::Tensor &split, int64_t right_rows, int64_t depth, const Addends &addends,
                     float *out) {
    const Output output{out, left.rows, right_rows, addends, false};
    Product{left, split.const_data_ptr<at::BFloat16>(), ceil_div(right_rows, BLOCK), depth, output}.run();
}

void multiply_bf16x3(const Operand &left, const Operand &right, int64_t depth, const float *bias, float *out) {
    // The larger operand is split by the thread that needs it, the smaller one once for all.
    const bool is_turned = left.rows < right.rows;
    const Operand &larger = is_turned ? right : left, &smaller = is_turned ? left : right;
    const at::Tensor split = split_bf16x3(smaller, depth);
    const Output output{out, left.rows, right.rows, {bias, nullptr}, is_turned};
    Product{larger, split.const_data_ptr<at::BFloat16>(), ceil_div(smaller.rows, BLOCK), depth, output}.run();
}

} // namespace shipreid

#else

namespace shipreid {

void multiply_bf16x3(const Operand &, const Operand &, int64_t, const float *, float *) { std::abort(); }

at::Tensor split_bf16x3(const Operand &, int64_t) { std::abort(); }

void multiply_bf16x3(const Operand &, const at::Tensor &, int64_t, int64_t, const Addends &, float *) { std::abort(); }

} // namespace shipreid

#endif
