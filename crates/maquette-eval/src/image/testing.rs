//! Features and reference values for the tests: `fixtures/image_metrics.json`, made by the script
//! beside it.

use crate::points::Points;
use serde_json::Value;

pub(super) struct Rows(Vec<f32>, usize);

impl Rows {
    pub(super) fn points(&self) -> Points<'_> {
        Points::new(&self.0, self.1).unwrap()
    }
}

/// The cases of one metric.
pub(super) fn fixture(metric: &str) -> Vec<Value> {
    let all: Value =
        serde_json::from_str(include_str!("../../fixtures/image_metrics.json")).unwrap();
    all[metric].as_array().unwrap().clone()
}

/// Numbers in units of a sixty-fourth, so that they are exact.
pub(super) fn numbers(values: &Value) -> Vec<f32> {
    let values = values.as_array().unwrap().iter();
    values.map(|x| x.as_f64().unwrap() as f32 / 64.0).collect()
}

/// Both sides of a case.
pub(super) fn features(case: &Value) -> (Rows, Rows) {
    let dims = case["dims"].as_u64().unwrap() as usize;
    let rows = |name: &str| Rows(numbers(&case[name]), dims);
    (rows("a"), rows("b"))
}

pub(super) fn near(got: f64, want: f64) {
    assert!((got - want).abs() < 1e-6, "{got} is not {want}");
}
