//! Both factors of a product in the order in which the innermost loop reads them.

use super::round::{join, round_each, round_row, rounded, zip_rows};
use super::{DEPTH, Kernel, Rounding};
use crate::matrix::Matrix;
use crate::transpose::{WIDTH, transpose};

/// Rows ready to be broadcast: packed element `(i, step)` is at `i * row + step * step`.
#[derive(Clone, Copy)]
pub(super) struct Left {
    pub(super) data: *const u32,
    pub(super) row: usize,
    pub(super) step: usize,
}

impl Kernel {
    /// Packs columns into `[depth][width]`, filled up with zeros.
    ///
    /// # Safety
    /// `to` has room for it; `part` is alive.
    pub(super) unsafe fn pack_right(&self, part: Matrix, depth: usize, to: *mut u32) {
        let [len, cols] = part.size;
        let width = self.width();
        let pair = self.rounding.pair();
        // SAFETY: indices stay inside `part` and below `depth * width`.
        unsafe {
            if part.strides[1] == 1 {
                for step in 0..depth {
                    let row = |i: usize| {
                        let i = step * pair + i;
                        (i < len).then(|| part.data.add(i * part.strides[0]).cast_const())
                    };
                    let to = to.add(step * width);
                    let second = if pair == 2 { row(1) } else { None };
                    self.pack_row(row(0), second, cols, to);
                    for j in cols..width {
                        to.add(j).write(0);
                    }
                }
            } else {
                let mut pairs = [0; DEPTH];
                for step in 0..depth {
                    for j in cols..width {
                        to.add(step * width + j).write(0);
                    }
                }
                if self.rounding != Rounding::Pairs && part.strides[0] == 1 {
                    // Sixteen columns by sixteen steps at a time.
                    for j in (0..cols).step_by(WIDTH) {
                        for step in (0..depth).step_by(WIDTH) {
                            let size = [WIDTH.min(cols - j), WIDTH.min(depth - step)];
                            let from = part.data.add(j * part.strides[1] + step).cast_const();
                            transpose(self.isa, from, part.strides[1], size, false, |i| {
                                to.add((step + i) * width + j).cast()
                            });
                        }
                    }
                    if self.rounding == Rounding::Single {
                        let packed = std::slice::from_raw_parts_mut(to, depth * width);
                        round_each(self.isa, packed);
                    }
                    return;
                }
                for j in 0..cols {
                    let column = part.data.add(j * part.strides[1]).cast_const();
                    if part.strides[0] == 1 {
                        let column = std::slice::from_raw_parts(column, len);
                        round_row(self.isa, column, &mut pairs[..depth]);
                        for (step, pair) in pairs[..depth].iter().enumerate() {
                            to.add(step * width + j).write(*pair);
                        }
                        continue;
                    }
                    let get = |i: usize| match i < len {
                        true => column.add(i * part.strides[0]).read(),
                        false => 0.0,
                    };
                    for step in 0..depth {
                        to.add(step * width + j).write(match self.rounding {
                            Rounding::None => get(step).to_bits(),
                            Rounding::Single => rounded(get(step)),
                            Rounding::Pairs => join(get(2 * step), get(2 * step + 1)),
                        });
                    }
                }
            }
        }
    }

    /// One step of the reduction of `count` neighbouring columns (or rows).
    ///
    /// # Safety
    /// Both rows and `to` hold `count` numbers.
    #[inline(always)]
    unsafe fn pack_row(
        &self,
        first: Option<*const f32>,
        second: Option<*const f32>,
        count: usize,
        to: *mut u32,
    ) {
        // SAFETY: the caller's.
        unsafe {
            match (self.rounding, first, second) {
                (Rounding::None, Some(first), _) => {
                    std::ptr::copy_nonoverlapping(first.cast::<u32>(), to, count);
                }
                (Rounding::Single, Some(first), _) => {
                    std::ptr::copy_nonoverlapping(first.cast::<u32>(), to, count);
                    round_each(self.isa, std::slice::from_raw_parts_mut(to, count));
                }
                (Rounding::Pairs, Some(first), Some(second)) => {
                    zip_rows(
                        self.isa,
                        std::slice::from_raw_parts(first, count),
                        std::slice::from_raw_parts(second, count),
                        std::slice::from_raw_parts_mut(to, count),
                    );
                }
                (Rounding::Pairs, Some(first), None) => {
                    for j in 0..count {
                        to.add(j).write(join(first.add(j).read(), 0.0));
                    }
                }
                (_, None, _) => unreachable!("a step has a first row"),
            }
        }
    }

    /// Prepares rows for broadcasting: in place where 32-bit floats are next to each other along
    /// the reduction, else in `scratch`.
    ///
    /// # Safety
    /// `part` is alive.
    pub(super) unsafe fn pack_left(
        &self,
        part: Matrix,
        depth: usize,
        scratch: &mut Vec<u32>,
    ) -> Left {
        let [rows, len] = part.size;
        let height = self.height;
        let whole = rows.next_multiple_of(height);
        if self.rounding == Rounding::None && part.strides[1] == 1 && whole == rows {
            return Left {
                data: part.data.cast(),
                row: part.strides[0],
                step: 1,
            };
        }
        scratch.clear();
        scratch.reserve(whole * depth);
        let to = scratch.as_mut_ptr();
        // SAFETY: indices stay below `whole * depth` and inside `part`.
        unsafe {
            if part.strides[1] == 1 {
                // `[row][step]`
                for row in 0..whole {
                    let to = to.add(row * depth);
                    if row >= rows {
                        for step in 0..depth {
                            to.add(step).write(0);
                        }
                        continue;
                    }
                    let from = part.data.add(row * part.strides[0]).cast_const();
                    match self.rounding {
                        Rounding::None | Rounding::Single => {
                            self.pack_row(Some(from), None, depth, to);
                        }
                        Rounding::Pairs => round_row(
                            self.isa,
                            std::slice::from_raw_parts(from, len),
                            std::slice::from_raw_parts_mut(to, depth),
                        ),
                    }
                }
                return Left {
                    data: to,
                    row: depth,
                    step: 1,
                };
            }
            // `[step][row]`
            let pair = self.rounding.pair();
            for step in 0..depth {
                let column = |i: usize| {
                    let i = step * pair + i;
                    (i < len).then(|| part.data.add(i * part.strides[1]).cast_const())
                };
                let to = to.add(step * whole);
                let second = if pair == 2 { column(1) } else { None };
                if part.strides[0] == 1 {
                    self.pack_row(column(0), second, rows, to);
                } else {
                    for i in 0..rows {
                        let get = |from: Option<*const f32>| {
                            from.map_or(0.0, |from| from.add(i * part.strides[0]).read())
                        };
                        to.add(i).write(match self.rounding {
                            Rounding::None => get(column(0)).to_bits(),
                            Rounding::Single => rounded(get(column(0))),
                            Rounding::Pairs => join(get(column(0)), get(second)),
                        });
                    }
                }
                for i in rows..whole {
                    to.add(i).write(0);
                }
            }
            Left {
                data: to,
                row: 1,
                step: whole,
            }
        }
    }
}
