//! Images as the channels of one: a set of many known modes from one of few (the stacked MNIST of Metz et
//! al. 2017, arXiv:1611.02163, with 1,000).

use maquette_rng::{Stream, permutation, rng};

use super::ImageSet;
use crate::{DataError, Result};

/// Between the names of a stack's parts.
const BETWEEN: char = '-';

impl ImageSet {
    /// As many images as the set has, each of `depth` grey ones drawn at random as its channels. The label
    /// is that of the parts, the first in the units' place: `a + n b + n^2 c` of `n` classes.
    ///
    /// # Errors
    /// Images in colour or without labels; more than 65,536 classes.
    pub fn stacked(&self, depth: usize, seed: u64) -> Result<ImageSet> {
        let n = self.class_names.len();
        let modes = (depth > 0).then(|| n.checked_pow(depth as u32)).flatten();
        let modes = modes.filter(|&modes| modes > 0 && modes <= usize::from(u16::MAX) + 1);
        let (Some(modes), Some(labels), 1) = (modes, &self.labels, self.channels) else {
            return Err(DataError::Config(format!(
                "stacks of {depth} need grey images with labels and at most 65536 combinations; these have {} \
                 channels and {n} classes",
                self.channels
            )));
        };
        let orders: Vec<_> = (0..depth as u64)
            .map(|channel| permutation(&mut rng(seed, Stream::Split, 1 + channel), self.len()))
            .collect();
        let mut pixels = Vec::with_capacity(depth * self.pixels.len());
        let mut stacked = Vec::with_capacity(self.len());
        for i in 0..self.len() {
            let mut label = 0;
            for order in orders.iter().rev() {
                label = label * n + usize::from(labels[order[i]]);
            }
            orders
                .iter()
                .for_each(|order| pixels.extend_from_slice(self.image(order[i])));
            stacked.push(label as u16);
        }
        let name = |mode: usize| {
            let parts = (0..depth as u32).map(|place| mode / n.pow(place) % n);
            let names: Vec<&str> = parts.map(|part| &*self.class_names[part]).collect();
            names.join(&BETWEEN.to_string())
        };
        Ok(ImageSet {
            channels: depth,
            pixels,
            labels: Some(stacked),
            class_names: (0..modes).map(name).collect(),
            ..*self
        })
    }

    /// The channels of [`ImageSet::stacked`] images as images of their own, those of one stack in a row.
    /// Their classes are known where the stacks' are.
    pub fn unstacked(&self) -> ImageSet {
        let depth = self.channels;
        let modes = self.class_names.len() as f64;
        let n = modes.powf(1.0 / depth.max(1) as f64).round() as usize;
        let parts = |label: &u16| {
            let label = usize::from(*label);
            (0..depth as u32).map(move |place| (label / n.pow(place) % n) as u16)
        };
        let first = |name: &String| name.split(BETWEEN).next().unwrap_or_default().to_owned();
        ImageSet {
            channels: 1,
            pixels: self.pixels.clone(),
            labels: self
                .labels
                .as_ref()
                .map(|labels| labels.iter().flat_map(parts).collect()),
            class_names: self.class_names.iter().take(n).map(first).collect(),
            ..*self
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn set() -> ImageSet {
        ImageSet {
            channels: 1,
            height: 1,
            width: 1,
            // A pixel tells its class.
            pixels: vec![0, 1, 2, 0, 1, 2],
            labels: Some(vec![0, 1, 2, 0, 1, 2]),
            class_names: ["a", "b", "c"].map(str::to_owned).into(),
        }
    }

    #[test]
    fn stacks_know_what_they_are_made_of() {
        let stacked = set().stacked(3, 5).unwrap();
        assert_eq!((stacked.channels, stacked.len()), (3, 6));
        assert_eq!(stacked.class_names.len(), 27);
        assert_eq!(stacked.class_names[1 + 3 * 2], "b-c-a");
        for (i, label) in stacked.labels.iter().flatten().enumerate() {
            let [a, b, c] = [0, 1, 2].map(|channel| u16::from(stacked.image(i)[channel]));
            assert_eq!(*label, a + 3 * b + 9 * c);
        }
        let apart = stacked.unstacked();
        assert_eq!((apart.channels, apart.len()), (1, 18));
        assert_eq!(apart.class_names, set().class_names);
        let labels: Vec<u8> = apart.labels.unwrap().iter().map(|l| *l as u8).collect();
        assert_eq!(labels, apart.pixels);
    }

    #[test]
    fn what_cannot_be_stacked_is_refused() {
        let error = set().stacked(3, 0).unwrap().stacked(2, 0).unwrap_err();
        assert!(error.to_string().contains("3 channels"), "{error}");
        assert!(set().stacked(0, 0).is_err());
        assert!(set().stacked(20, 0).is_err());
    }
}
