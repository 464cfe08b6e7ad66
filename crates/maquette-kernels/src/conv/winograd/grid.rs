//! Images as grids of cells, channels last.

use std::ops::Range;

use super::padded;
use crate::simd::Isa;
use crate::transpose::{WIDTH, transpose};

/// How pixels lie in a grid: pixel `step * v + phase - before` of each axis is in cell `v`, or zero
/// outside of the image. A cell holds `[phase row][phase column][channel]`, each pixel's channels
/// padded with zeros.
#[derive(Clone, Copy, Debug)]
pub(super) struct Grid {
    pub(super) channels: usize,
    pub(super) size: [usize; 2],
    pub(super) step: [usize; 2],
    pub(super) before: [usize; 2],
}

impl Grid {
    /// Floats of a cell.
    pub(super) fn depth(&self) -> usize {
        self.step[0] * self.step[1] * padded(self.channels)
    }

    /// Channel and phase of float `k` of a cell. The channel may be padding.
    pub(super) fn channel(&self, k: usize) -> (usize, [usize; 2]) {
        let (phase, channel) = (k / padded(self.channels), k % padded(self.channels));
        (channel, [phase / self.step[1], phase % self.step[1]])
    }

    /// Copies rows of cells of image `n` of `x`, `cols` cells each.
    ///
    /// # Panics
    /// If `to` is too short or `x` has no such image.
    pub(super) fn fill(
        &self,
        isa: Isa,
        n: usize,
        x: &[f32],
        rows: Range<usize>,
        cols: usize,
        to: &mut [f32],
    ) {
        let [height, width] = self.size;
        let pixel = padded(self.channels);
        let part = self.step[1] * pixel;
        let image = &x[n * self.channels * height * width..][..self.channels * height * width];
        let lines = rows.flat_map(|v| (0..self.step[0]).map(move |phase| (v, phase)));
        let mut cells = to.chunks_exact_mut(cols * self.depth());
        let mut row = cells.next();
        for (v, phase) in lines {
            let line = row.as_deref_mut().expect("a row per row of cells");
            let y = (v * self.step[0] + phase).checked_sub(self.before[0]);
            let y = y.filter(|y| *y < height);
            // Pixel `u - before` is at `place(u)`.
            let place = |u: usize| {
                u / self.step[1] * self.depth() + phase * part + u % self.step[1] * pixel
            };
            let all = cols * self.step[1];
            let (before, end) = match y {
                Some(_) => (self.before[1], (self.before[1] + width).min(all)),
                None => (all, all),
            };
            for u in (0..before.min(all)).chain(end..all) {
                line[place(u)..][..pixel].fill(0.0);
            }
            if let Some(y) = y {
                for channel in (0..self.channels).step_by(WIDTH) {
                    let channels = (self.channels - channel).min(WIDTH);
                    for u in (before..end).step_by(WIDTH) {
                        let count = (end - u).min(WIDTH);
                        let from = &image[(channel * height + y) * width + u - before..];
                        assert!(place(u + count - 1) + channel + WIDTH <= line.len());
                        let line = line.as_mut_ptr();
                        // SAFETY: `count` pixels of row `y` in each of the channels' planes; the
                        // last place is the furthest and inside the line.
                        unsafe {
                            transpose(
                                isa,
                                from.as_ptr(),
                                height * width,
                                [channels, count],
                                true,
                                |j| line.add(place(u + j) + channel),
                            );
                        }
                    }
                }
            }
            if phase + 1 == self.step[0] {
                row = cells.next();
            }
        }
    }
}
