//! Images that a generator made a while ago.

use burn::{
    module::{Module, RunningState},
    tensor::{Device, Int, Tensor, TensorData},
};
use maquette_rng::{Rng, uniform};

/// A critic's memory of made images (Shrivastava et al. 2017, section 2.3, arXiv:1612.07828): half of those
/// that it is to see are exchanged for remembered ones, whose place they take. It is state, saved with the
/// weights; what it draws is keyed by the turn.
#[derive(Module, Debug)]
pub(super) struct History {
    /// `[size, channels, height, width]`.
    images: RunningState<Tensor<4>>,
}

impl History {
    /// The field that is no weight.
    pub(super) const FIELD: &str = "images";

    pub(super) fn new(shape: [usize; 4], device: &Device) -> Self {
        Self {
            images: RunningState::new(Tensor::zeros(shape, device)),
        }
    }

    /// `made`, some of it exchanged for what is remembered; `seen` images came before.
    ///
    /// # Shapes
    /// - made, output: `[batch, channels, height, width]`
    pub(super) fn exchange(&self, made: Tensor<4>, seen: u64, rng: &mut Rng) -> Tensor<4> {
        let (device, made) = (made.device(), made.detach());
        let remembered = self.images.value().to_device(&device).detach();
        let (size, batch) = (remembered.dims()[0], made.dims()[0]);
        let (kept, shown) = plan(size, batch, seen, rng);
        let all = Tensor::cat(vec![remembered, made], 0);
        let take = |at: Vec<usize>| {
            let at: Vec<i32> = at.into_iter().map(|i| i as i32).collect();
            let n = at.len();
            let at = Tensor::<1, Int>::from_data(TensorData::new(at, [n]), &device);
            all.clone().select(0, at)
        };
        self.images.update(take(kept));
        // A checkpoint holds what was synchronised.
        self.images.value_sync();
        take(shown)
    }
}

/// Which of `size` remembered and then `batch` made images are remembered from now on, and which are shown.
fn plan(size: usize, batch: usize, seen: u64, rng: &mut Rng) -> (Vec<usize>, Vec<usize>) {
    let mut kept: Vec<usize> = (0..size).collect();
    // Every draw is made whether used or not.
    let draws = uniform(rng, 2 * batch);
    let shown = (0..batch).map(|i| {
        let (new, at) = (size + i, seen + i as u64);
        if at < size as u64 {
            kept[at as usize] = new;
            return new;
        }
        if draws[2 * i] < 0.5 {
            return new;
        }
        let place = ((draws[2 * i + 1] * size as f32) as usize).min(size - 1);
        std::mem::replace(&mut kept[place], new)
    });
    let shown = shown.collect();
    (kept, shown)
}

#[cfg(test)]
mod tests {
    use super::*;
    use maquette_rng::{Stream, rng};

    #[test]
    fn it_fills_up_first_and_then_exchanges_half() {
        let random = &mut rng(0, Stream::Noise, 0);
        assert_eq!(plan(4, 3, 0, random), (vec![4, 5, 6, 3], vec![4, 5, 6]));
        let (kept, shown) = plan(4, 3, 3, random);
        assert_eq!((kept[3], shown[0]), (4, 4), "the last free place");
        let mut old = 0;
        for _ in 0..200 {
            let (kept, shown) = plan(50, 10, 1000, random);
            old += shown.iter().filter(|i| **i < 50).count();
            // Each image is either remembered or shown.
            let mut all = [kept, shown].concat();
            all.sort_unstable();
            assert_eq!(all, (0..60).collect::<Vec<_>>());
        }
        // A little less than half is from before the batch: what it gave may come back at once.
        assert!((850..1050).contains(&old), "{old} of 2000");
    }

    #[test]
    fn images_come_back_as_they_were() {
        let device = Device::flex();
        let history = History::new([2, 1, 1, 1], &device);
        let batch =
            |values: [f32; 2]| Tensor::<1>::from_floats(values, &device).reshape([2, 1, 1, 1]);
        let numbers = |x: Tensor<4>| x.into_data().try_to_vec::<f32>().unwrap();
        let random = &mut rng(1, Stream::Noise, 0);
        let first = history.exchange(batch([1.0, 2.0]), 0, random);
        assert_eq!(numbers(first), [1.0, 2.0]);
        let (mut pool, mut news) = (vec![1.0, 2.0], 3.0);
        for turn in 1..30 {
            let given = [news, news + 1.0];
            let shown = numbers(history.exchange(batch(given), 2 * turn, random));
            let kept = numbers(history.images.value());
            let mut before = [pool, given.to_vec()].concat();
            let mut after = [kept.clone(), shown].concat();
            before.sort_by(f32::total_cmp);
            after.sort_by(f32::total_cmp);
            assert_eq!(before, after);
            (pool, news) = (kept, news + 2.0);
        }
    }
}
