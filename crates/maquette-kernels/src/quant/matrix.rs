//! Matrices of weights in a file's number format.

use std::ops::Range;

use super::product::{Job, Kernel, Level};
use super::records::Records;
use super::{Bytes, Format};
use crate::elementwise::GRAIN;
use crate::shared::Shared;
use crate::simd::Isa;
use crate::team;

/// A matrix `[rows, columns]` of weights, row after row, used as `x W^T`. Clones share the weights.
#[derive(Clone, Debug)]
pub struct QuantMatrix {
    format: Format,
    rows: usize,
    columns: usize,
    bytes: Bytes,
}

/// Bytes that are no matrix of the size they are said to be.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum MatrixError {
    /// No rows, no columns, or more numbers than memory has addresses for.
    #[error(
        "a matrix of {rows} rows of {columns} numbers: neither may be zero, nor the whole too large to address"
    )]
    Size {
        /// Rows asked for.
        rows: usize,
        /// Columns asked for.
        columns: usize,
    },
    /// A row does not end with a block.
    #[error(
        "rows of {columns} numbers are not of whole blocks: {format} has {block} numbers a block"
    )]
    Blocks {
        /// Columns asked for.
        columns: usize,
        /// The format's name.
        format: &'static str,
        /// Numbers of one of its blocks.
        block: usize,
    },
    /// Too few bytes, or too many.
    #[error(
        "{got} bytes for a matrix that takes {expected}: the file is damaged or its shapes are wrong"
    )]
    Length {
        /// Bytes given.
        got: usize,
        /// Bytes such a matrix has.
        expected: usize,
    },
}

impl QuantMatrix {
    /// The matrix that `bytes` hold.
    ///
    /// # Errors
    /// [`MatrixError`] where they cannot be such a matrix.
    pub fn new(
        format: Format,
        rows: usize,
        columns: usize,
        bytes: Bytes,
    ) -> Result<Self, MatrixError> {
        // Products address numbers as well as bytes, as 32-bit floats.
        let addressable = |count: usize| {
            count
                .checked_mul(4)
                .is_some_and(|n| n < isize::MAX as usize)
        };
        let size = rows.checked_mul(columns).filter(|n| addressable(*n));
        if size.is_none_or(|size| size == 0) {
            return Err(MatrixError::Size { rows, columns });
        }
        let row = format.row_bytes(columns).ok_or(MatrixError::Blocks {
            columns,
            format: format.name(),
            block: format.block().0,
        })?;
        // No format takes more bytes than 32-bit floats do.
        let expected = row * rows;
        if bytes.len() != expected {
            return Err(MatrixError::Length {
                got: bytes.len(),
                expected,
            });
        }
        Ok(Self {
            format,
            rows,
            columns,
            bytes,
        })
    }

    /// The numbers `[rows, columns]` in the nearest blocks of `format`.
    ///
    /// # Errors
    /// As [`Self::new`].
    pub fn encode(
        format: Format,
        rows: usize,
        columns: usize,
        numbers: &[f32],
    ) -> Result<Self, MatrixError> {
        let whole = format.row_bytes(columns).is_some() && numbers.len().is_multiple_of(columns);
        let bytes = if whole {
            format.encode(numbers)
        } else {
            Vec::new()
        };
        Self::new(format, rows, columns, bytes.into())
    }

    /// Outputs of a product.
    pub fn rows(&self) -> usize {
        self.rows
    }

    /// Inputs of a product.
    pub fn columns(&self) -> usize {
        self.columns
    }

    /// How the numbers are stored.
    pub fn format(&self) -> Format {
        self.format
    }

    /// The blocks, row after row.
    pub fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// The same, as many as `new` found: whoever owns them could have changed his mind.
    fn checked_bytes(&self) -> &[u8] {
        let row = self.format.row_bytes(self.columns);
        let expected = row.map_or(0, |row| row * self.rows);
        assert_eq!(
            self.bytes.len(),
            expected,
            "bytes of weights were taken away"
        );
        &self.bytes
    }

    /// The numbers of row `i`.
    ///
    /// # Panics
    /// If there is no such row, or `out` is not as long as one.
    pub fn row(&self, i: usize, out: &mut [f32]) {
        assert!(i < self.rows, "row {i} of {}", self.rows);
        let row = self.bytes.len() / self.rows;
        self.format.decode(&self.bytes[i * row..][..row], out);
    }

    /// `out = x W^T`. A row of `out` depends on its row of `x` alone, to the last bit, and not on
    /// how many rows or threads there are.
    ///
    /// # Shapes
    /// - `x`: `[n, columns]`, any `n`
    /// - `out`: `[n, rows]`
    ///
    /// # Panics
    /// If the lengths are others.
    pub fn multiply(&self, x: &[f32], out: &mut [f32]) {
        multiply_many(&[self], x, &mut [out]);
    }
}

/// Products of several matrices with the same `x`, which is prepared once: queries, keys and values,
/// or gate and up.
///
/// # Shapes
/// - `x`: `[n, columns]`
/// - `outs`, one for each matrix: `[n, rows]`
///
/// # Panics
/// If the lengths are others, or columns differ.
pub fn multiply_many(matrices: &[&QuantMatrix], x: &[f32], outs: &mut [&mut [f32]]) {
    assert_eq!(matrices.len(), outs.len(), "one output per matrix");
    multiply_on(Level::detect(), matrices, x, outs);
}

/// As [`multiply_many`], on one instruction set.
///
/// # Panics
/// If the machine lacks it, too.
fn multiply_on(level: Level, matrices: &[&QuantMatrix], x: &[f32], outs: &mut [&mut [f32]]) {
    assert!(Level::available().contains(&level), "{level:?} is not here");
    // 1. What is to be computed, with `x` prepared once for each way of preparing it.
    let mut prepared: Vec<(Records, Vec<u32>)> = Vec::new();
    for matrix in matrices {
        let n = x.len() / matrix.columns;
        assert_eq!(
            [x.len(), matrices[0].columns],
            [n * matrix.columns, matrix.columns],
            "products of whole rows with matrices of as many columns"
        );
        let records = Kernel::of(matrix.format, level).records;
        if prepared.iter().all(|(known, _)| *known != records) {
            prepared.push((records, prepare(records, x, matrix.columns)));
        }
    }
    let jobs = matrices.iter().zip(outs).map(|(matrix, out)| {
        let n = x.len() / matrix.columns;
        assert_eq!(
            out.len(),
            n * matrix.rows,
            "{n} rows out of a product with [{}, {}]",
            matrix.rows,
            matrix.columns
        );
        let kernel = Kernel::of(matrix.format, level);
        let found = prepared.iter().find(|(known, _)| *known == kernel.records);
        let (_, words) = found.expect("prepared above for each matrix");
        let job = Job {
            weights: matrix.checked_bytes(),
            rows: matrix.rows,
            columns: matrix.columns,
            x: words,
            n,
            out: Shared::new(out),
        };
        (kernel, job)
    });
    let mut tasks = 0;
    let jobs: Vec<_> = jobs
        .map(|(kernel, job)| {
            let first = tasks;
            tasks += kernel.tasks(&job);
            (first..tasks, kernel, job)
        })
        .collect();
    // 2. All parts of all of them, job by job.
    team::each_share(tasks, |share| {
        let mut share = share.peekable();
        while let Some(task) = share.peek() {
            let of = |(tasks, ..): &&(Range<usize>, _, _)| tasks.contains(task);
            let (tasks, kernel, job) = jobs.iter().find(of).expect("tasks of jobs");
            let own = || Some(share.next_if(|task| tasks.contains(task))? - tasks.start);
            // SAFETY: the machine has the level; bytes and `x` fit as `new`, `checked_bytes` and
            // `prepare` see to; outputs are borrowed exclusively, and each task has its own rows.
            unsafe { kernel.run(job, &mut std::iter::from_fn(own)) };
        }
    });
}

/// All rows of `x` for some matrices.
fn prepare(records: Records, x: &[f32], columns: usize) -> Vec<u32> {
    let (isa, row) = (Isa::detect(), records.row(columns));
    let mut words = vec![0; x.len() / columns * row];
    // Parts of whole rows.
    let rows = GRAIN.div_ceil(columns);
    team::each_part(&mut words, rows * row, |part, words| {
        let x = x.chunks_exact(columns).skip(part * rows);
        for (x, words) in x.zip(words.chunks_exact_mut(row)) {
            records.write(isa, x, words);
        }
    });
    words
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Numbers on -1..1 without a pattern.
    fn numbers(count: usize, salt: u64) -> Vec<f32> {
        let number = |i: usize| {
            let hash = (i as u64 + 1 + (salt << 32)).wrapping_mul(0x9e37_79b9_7f4a_7c15);
            let hash = (hash ^ hash >> 29).wrapping_mul(0xbf58_476d_1ce4_e5b9);
            (hash >> 40) as f32 / (1 << 23) as f32 - 1.0
        };
        (0..count).map(number).collect()
    }

    fn product(level: Level, weights: &QuantMatrix, x: &[f32]) -> Vec<f32> {
        let mut out = vec![f32::NAN; x.len() / weights.columns() * weights.rows()];
        multiply_on(level, &[weights], x, &mut [&mut out]);
        out
    }

    /// What blocks of 8 bits make of `x`, and half of a step: how far that may be off.
    fn rounded(format: Format, x: &[f32]) -> Vec<(f32, f32)> {
        let block = match format {
            Format::Q4_0 | Format::Q8_0 => 32,
            Format::Q4K | Format::Q5K | Format::Q6K => 256,
            Format::F32 | Format::F16 | Format::Bf16 => {
                return x.iter().map(|x| (*x, 0.0)).collect();
            }
        };
        let round = |x: &[f32]| {
            let scale = x.iter().fold(0.0, |top: f32, x| top.max(x.abs())) / 127.0;
            let per = 1.0 / scale;
            let round = |x: &f32| ((x * per).round_ties_even() * scale, 0.5001 * scale);
            x.iter().map(round).collect::<Vec<_>>()
        };
        x.chunks(block).flat_map(round).collect()
    }

    #[test]
    fn hostile_sizes_are_refused() {
        let of = |format, rows, columns, len| {
            QuantMatrix::new(format, rows, columns, Bytes::from(vec![0; len])).map(|_| ())
        };
        let size = |rows, columns| Err(MatrixError::Size { rows, columns });
        assert_eq!(of(Format::F32, 0, 4, 0), size(0, 4));
        assert_eq!(of(Format::F32, 4, 0, 0), size(4, 0));
        assert_eq!(
            of(Format::Q8_0, usize::MAX / 16, 32, 0),
            size(usize::MAX / 16, 32)
        );
        assert_eq!(of(Format::Q8_0, 1 << 62, 32, 0), size(1 << 62, 32));
        assert!(matches!(
            of(Format::Q4_0, 2, 33, 0),
            Err(MatrixError::Blocks { .. })
        ));
        assert!(matches!(
            of(Format::Q6K, 2, 32, 0),
            Err(MatrixError::Blocks { .. })
        ));
        for len in [0, 35, 37, 72] {
            let expected = Err(MatrixError::Length {
                got: len,
                expected: 36,
            });
            assert_eq!(of(Format::Q4_0, 1, 64, len), expected);
        }
        assert_eq!(of(Format::Q4_0, 1, 64, 36), Ok(()));
    }

    #[test]
    fn products_are_those_of_the_decoded_numbers() {
        for format in Format::ALL {
            let block = format.block().0;
            let sizes = [
                (37, 512),
                (3, 256),
                (16, 768),
                (1, if block == 1 { 31 } else { 256 }),
                (50, 1280),
                // Rows of one to 33 blocks, in two or three groups.
                (33, block),
                (17, 5 * block),
                (33, 11 * block),
                (34, 33 * block),
            ];
            for (rows, columns) in sizes {
                let weights = numbers(rows * columns, 1);
                let weights = QuantMatrix::encode(format, rows, columns, &weights).unwrap();
                let x = numbers(9 * columns, 2);
                for level in Level::available() {
                    let native = Kernel::of(format, level).records == Records::Pairs;
                    let out = product(level, &weights, &x);
                    let mut row = vec![0.0; columns];
                    for (i, out) in out.iter().enumerate() {
                        weights.row(i % rows, &mut row);
                        let x = &x[i / rows * columns..][..columns];
                        let [mut exact, mut near, mut step, mut size] = [0.0f64; 4];
                        for ((w, x), (p, half)) in row.iter().zip(x).zip(rounded(format, x)) {
                            let w = f64::from(*w);
                            exact += w * f64::from(*x);
                            near += w * f64::from(p);
                            step += w.abs() * f64::from(half);
                            size += w.abs() * f64::from(x.abs());
                        }
                        // Of what `x` is rounded to, sums of 32-bit floats; of `x`, no more than what
                        // rounding it can do. With products of bf16, `x` has 8 bits too.
                        let bound = if native { size / 256.0 } else { 1e-6 * size };
                        let out = f64::from(*out);
                        let what = format!("{format:?} {level:?} [{rows}, {columns}] {i}: {out}");
                        assert!((out - near).abs() <= bound, "{what}, not {near}");
                        assert!(
                            (out - exact).abs() <= step + bound,
                            "{what}, exactly {exact}"
                        );
                    }
                }
            }
        }
    }

    #[test]
    fn a_row_has_the_same_product_alone_and_on_any_number_of_threads() {
        let sizes = |format: Format| {
            let block = format.block().0;
            [
                (format, 75, 512),
                (format, 40, 13 * block),
                (format, 20, 29 * block),
            ]
        };
        for (format, rows, columns) in Format::ALL.into_iter().flat_map(sizes) {
            let weights = numbers(rows * columns, 3);
            let weights = QuantMatrix::encode(format, rows, columns, &weights).unwrap();
            let x = numbers(23 * columns, 4);
            for level in Level::available() {
                let alone: Vec<f32> = x
                    .chunks_exact(columns)
                    .flat_map(|x| product(level, &weights, x))
                    .collect();
                for n in [2, 3, 4, 5, 8, 23] {
                    for threads in [1, 3] {
                        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads);
                        let x = &x[..n * columns];
                        let out = pool
                            .build()
                            .unwrap()
                            .install(|| product(level, &weights, x));
                        assert_eq!(out, alone[..n * rows], "{format:?} {level:?} {n} {threads}");
                    }
                }
            }
        }
    }

    #[test]
    fn several_products_at_once_are_those_of_each() {
        let columns = 256;
        let formats = [Format::Q4K, Format::Q6K, Format::Q4K, Format::F16];
        let weights = [20, 33, 1, 64].map(|rows| numbers(rows * columns, rows as u64));
        let matrices: Vec<QuantMatrix> = formats
            .into_iter()
            .zip(&weights)
            .map(|(f, w)| QuantMatrix::encode(f, w.len() / columns, columns, w).unwrap())
            .collect();
        let x = numbers(3 * columns, 9);
        let mut outs: Vec<Vec<f32>> = matrices.iter().map(|m| vec![0.0; 3 * m.rows()]).collect();
        let all: Vec<&QuantMatrix> = matrices.iter().collect();
        let mut parts: Vec<&mut [f32]> = outs.iter_mut().map(|out| &mut out[..]).collect();
        multiply_many(&all, &x, &mut parts);
        for (matrix, out) in matrices.iter().zip(&outs) {
            assert_eq!(*out, product(Level::detect(), matrix, &x));
        }
        multiply_many(&[], &x, &mut []);
        matrices[0].multiply(&[], &mut []);
    }

    #[test]
    fn what_is_not_finite_stays_so() {
        for format in Format::ALL {
            let weights = QuantMatrix::encode(format, 20, 256, &numbers(20 * 256, 5)).unwrap();
            for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
                let mut x = numbers(256, 6);
                x[100] = bad;
                for level in Level::available() {
                    let out = product(level, &weights, &x);
                    assert!(
                        out.iter().all(|out| !out.is_finite()),
                        "{format:?} {level:?} {bad}"
                    );
                }
            }
            // Nor is a number so small that it has no inverse anything but small.
            let out = product(Level::detect(), &weights, &[f32::MIN_POSITIVE / 1e3; 256]);
            assert!(out.iter().all(|out| out.abs() < 1e-30), "{format:?}");
        }
    }
}
