//! What the tests of folders share: fixtures and what `fixtures/make.py` wrote beside them.

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
};

use burn::tensor::{Device, Int, Tensor, TensorData};
use serde_json::Value;

/// The folder of a fixture.
pub(crate) fn fixture(name: &str) -> PathBuf {
    Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/fixtures")).join(name)
}

/// Named arrays of numbers out of `expected.json`.
pub(crate) struct Expected(BTreeMap<String, Value>);

impl Expected {
    /// Those of a fixture.
    pub(crate) fn of(name: &str) -> Self {
        let bytes = fs::read(fixture(name).join("expected.json")).unwrap();
        Self(serde_json::from_slice(&bytes).unwrap())
    }

    /// The numbers under a name in order, if it is there.
    pub(crate) fn get(&self, key: &str) -> Option<Vec<f64>> {
        fn flatten(value: &Value, into: &mut Vec<f64>) {
            match value {
                Value::Array(values) => values.iter().for_each(|value| flatten(value, into)),
                number => into.push(number.as_f64().unwrap()),
            }
        }
        let mut numbers = Vec::new();
        flatten(self.0.get(key)?, &mut numbers);
        Some(numbers)
    }

    /// A table of whole numbers.
    pub(crate) fn ids(&self, key: &str) -> Tensor<2, Int> {
        let rows = self.0[key].as_array().unwrap().len();
        let values: Vec<i64> = self.get(key).unwrap().iter().map(|x| *x as i64).collect();
        let width = values.len() / rows;
        Tensor::from_data(TensorData::new(values, [rows, width]), &Device::flex())
    }

    /// Checks that numbers are those of `transformers`.
    pub(crate) fn check<const D: usize>(&self, name: &str, key: &str, got: Tensor<D>) {
        let expected = self.get(key).unwrap();
        let got: Vec<f32> = got.into_data().iter::<f32>().collect();
        assert_eq!(got.len(), expected.len(), "{name}: {key}");
        let differences = got
            .iter()
            .zip(&expected)
            .map(|(a, b)| (f64::from(*a) - b).abs());
        let largest = differences.fold(0.0, f64::max);
        assert!(largest < 1e-4, "{name}: {key} differs by {largest}");
    }
}
