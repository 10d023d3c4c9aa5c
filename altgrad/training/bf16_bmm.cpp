// Batched products of float32 matrices whose values bf16 has too, by oneDNN's block product of bf16 numbers that adds in
// float32. PyTorch has that inside (at::native::cpublas::brgemm) and offers no operator that uses it.
//
// The left matrix is narrowed to bf16 as it is; of the right one, consecutive rows lie in pairs, as the processor's dot
// product of two wants them. Either may be given transposed.

#include <ATen/Parallel.h>
#include <ATen/cpu/vec/vec.h>
#include <ATen/native/CPUBlas.h>

#include <algorithm>
#include <cstdint>
#include <vector>

namespace {

// Rows and columns of a block of the product, and terms that are added in one go: rows of the left block and pairs of
// the right one stay in the caches, and sums err no more than those of float32 libraries.
constexpr int64_t ROWS = 64, COLUMNS = 64, TERMS = 256;
// Side of a tile that is transposed at once.
constexpr int64_t TILE = 16;

// float32 bits, and the strides to the next matrix, row and column; that of rows or that of columns is 1.
struct Matrices {
  const uint32_t* bits;
  int64_t matrix, row, column;

  const uint32_t* at(int64_t l, int64_t i, int64_t j) const {
    return bits + l * matrix + i * row + j * column;
  }
};

// The upper halves: all there is of a value that bf16 has.
void narrow(const uint32_t* from, uint16_t* to, int64_t count) {
  for (int64_t i = 0; i < count; ++i) {
    to[i] = static_cast<uint16_t>(from[i] >> 16);
  }
}

void transpose(const uint32_t* from, int64_t from_row, uint32_t* to, int64_t to_row, int64_t rows, int64_t columns) {
  at::vec::transpose_mxn<float>(
      reinterpret_cast<const float*>(from), from_row, reinterpret_cast<float*>(to), to_row, rows, columns);
}

// Rows first, first + 1, ... of a left matrix, each padded with a zero to an even length.
void pack_rows(const Matrices& a, int64_t l, int64_t first, int64_t rows, int64_t terms, uint16_t* to) {
  const int64_t length = terms + terms % 2;
  if (a.column == 1) {
    for (int64_t i = 0; i < rows; ++i) {
      narrow(a.at(l, first + i, 0), to + i * length, terms);
    }
  } else {
    uint32_t tile[TILE * TILE];
    for (int64_t k = 0; k < terms; k += TILE) {
      for (int64_t i = 0; i < rows; i += TILE) {
        const int64_t height = std::min(TILE, rows - i), width = std::min(TILE, terms - k);
        transpose(a.at(l, first + i, k), a.column, tile, TILE, width, height);
        for (int64_t r = 0; r < height; ++r) {
          narrow(tile + r * TILE, to + (i + r) * length + k, width);
        }
      }
    }
  }
  if (terms % 2) {
    for (int64_t i = 0; i < rows; ++i) {
      to[i * length + terms] = 0;
    }
  }
}

// Columns first, first + 1, ... of a right matrix, two consecutive rows in one: (pairs, columns).
void pack_pairs(const Matrices& b, int64_t l, int64_t first, int64_t columns, int64_t terms, uint32_t* to) {
  const int64_t pairs = (terms + 1) / 2;
  if (b.column == 1) {
    for (int64_t p = 0; p < pairs; ++p) {
      const uint32_t* even = b.at(l, 2 * p, first);
      const uint32_t* odd = 2 * p + 1 < terms ? even + b.row : nullptr;
      for (int64_t j = 0; j < columns; ++j) {
        to[p * columns + j] = even[j] >> 16 | (odd ? odd[j] & 0xffff0000u : 0u);
      }
    }
  } else {
    uint32_t tile[TILE * TILE];
    for (int64_t j = 0; j < columns; j += TILE) {
      for (int64_t p = 0; p < pairs; p += TILE) {
        const int64_t height = std::min(TILE, columns - j), width = std::min(TILE, pairs - p);
        const int64_t count = std::min(2 * width, terms - 2 * p);
        for (int64_t r = 0; r < height; ++r) {
          auto* halves = reinterpret_cast<uint16_t*>(tile + r * TILE);
          narrow(b.at(l, 2 * p, first + j + r), halves, count);
          if (count < 2 * width) {
            halves[count] = 0;
          }
        }
        transpose(tile, TILE, to + p * columns + j, columns, height, width);
      }
    }
  }
}

} // namespace

// c = a @ b for a of (lanes, m, k), b of (lanes, k, n) and contiguous c of (lanes, m, n).
extern "C" void bmm_bf16(
    const uint32_t* a, int64_t a_lane, int64_t a_row, int64_t a_column,
    const uint32_t* b, int64_t b_lane, int64_t b_row, int64_t b_column,
    float* c, int64_t lanes, int64_t m, int64_t k, int64_t n) {
  const Matrices left{a, a_lane, a_row, a_column}, right{b, b_lane, b_row, b_column};
  const int64_t pairs = (k + 1) / 2;
  const int64_t row_blocks = (m + ROWS - 1) / ROWS, column_blocks = (n + COLUMNS - 1) / COLUMNS;

  // Kept from call to call: fresh memory of this size would have to be mapped anew each time.
  static thread_local std::vector<uint32_t> packed;
  packed.resize(lanes * n * pairs);
  uint32_t* const columns = packed.data();
  at::parallel_for(0, lanes * column_blocks, 1, [&](int64_t begin, int64_t end) {
    for (int64_t t = begin; t < end; ++t) {
      const int64_t l = t / column_blocks, j = t % column_blocks * COLUMNS;
      pack_pairs(right, l, j, std::min(COLUMNS, n - j), k, columns + (l * n + j) * pairs);
    }
  });
  at::parallel_for(0, lanes * row_blocks, 1, [&](int64_t begin, int64_t end) {
    static thread_local std::vector<uint16_t> rows;
    rows.resize(ROWS * 2 * pairs);
    for (int64_t t = begin; t < end; ++t) {
      const int64_t l = t / row_blocks, i = t % row_blocks * ROWS, height = std::min(ROWS, m - i);
      pack_rows(left, l, i, height, k, rows.data());
      for (int64_t j = 0; j < n; j += COLUMNS) {
        const int64_t width = std::min(COLUMNS, n - j);
        for (int64_t first = 0; first < 2 * pairs; first += TERMS) {
          at::native::cpublas::brgemm(
              height, width, std::min(TERMS, 2 * pairs - first), 2 * pairs, width, n, /*add_C=*/first > 0,
              reinterpret_cast<const at::BFloat16*>(rows.data() + first),
              reinterpret_cast<const at::BFloat16*>(columns + (l * n + j) * pairs + first / 2 * width),
              c + (l * m + i) * n + j);
        }
      }
    }
    at::native::cpublas::brgemm_release();
  });
}
