//! Cutting the images into tiles, and the tiles into tasks.

use std::ops::Range;

use super::transform::OUTPUTS;
use crate::simd::Isa;

/// Floats of transformed tiles that a thread works on at a time: they stay in its second cache.
const BLOCK: usize = 160 << 10;

/// What one image's part of a convolution needs to be cut into tiles.
#[derive(Clone, Copy)]
pub(super) struct Cut {
    pub(super) isa: Isa,
    pub(super) taps: usize,
    pub(super) batch: usize,
    /// Tiles of an image, down and across.
    pub(super) tiles: [usize; 2],
    /// Rows of tiles, or whole images, that make one task.
    pub(super) rows: usize,
    pub(super) images: usize,
}

/// Some rows of tiles of some images: the unit of parallel work, fixed by the shapes.
#[derive(Clone)]
pub(super) struct Task {
    pub(super) images: Range<usize>,
    pub(super) rows: Range<usize>,
}

impl Cut {
    /// `depth` is the length of all that is kept of one tile entry.
    pub(super) fn new(
        isa: Isa,
        taps: usize,
        batch: usize,
        positions: [usize; 2],
        depth: usize,
    ) -> Self {
        let tiles = positions.map(|n| n.div_ceil(OUTPUTS));
        let side = OUTPUTS + taps - 1;
        let wanted = (BLOCK / (side * side * depth)).clamp(16, 64);
        let image = tiles[0] * tiles[1];
        let (rows, images) = if image > wanted {
            (tiles[0].div_ceil(image.div_ceil(wanted)), 1)
        } else {
            (tiles[0], (wanted / image).min(batch))
        };
        Self {
            isa,
            taps,
            batch,
            tiles,
            rows,
            images,
        }
    }

    pub(super) fn tasks(&self) -> Vec<Task> {
        let mut tasks = Vec::new();
        for first in (0..self.batch).step_by(self.images) {
            let images = first..(first + self.images).min(self.batch);
            for row in (0..self.tiles[0]).step_by(self.rows) {
                let rows = row..(row + self.rows).min(self.tiles[0]);
                tasks.push(Task {
                    images: images.clone(),
                    rows,
                });
            }
        }
        tasks
    }

    /// Entries of a transformed tile.
    pub(super) fn entries(&self) -> usize {
        (OUTPUTS + self.taps - 1).pow(2)
    }

    /// Most tiles of a task.
    pub(super) fn block(&self) -> usize {
        self.images * self.rows * self.tiles[1]
    }

    pub(super) fn count(&self, task: &Task) -> usize {
        task.images.len() * task.rows.len() * self.tiles[1]
    }
}
