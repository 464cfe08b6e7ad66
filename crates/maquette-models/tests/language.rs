//! The language models that are no transformers: PyTorch's numbers (`fixtures/recurrent.py` made
//! them), slopes, memory, and folders.

use std::collections::BTreeMap;
use std::path::Path;

use burn::module::{Module, ModuleVisitor, Param};
use burn::tensor::{Device, Gradients, Int, Tensor, TensorData};
use maquette_models::nn::InitScheme;
use maquette_models::{
    CausalConvConfig, Cell, LanguageConfig, LanguageLoss, LanguageModel, ModelError,
    RecurrentConfig, store,
};
use maquette_rng::{Stream, rng};
use serde::Deserialize;

type Arrays = BTreeMap<String, Vec<f32>>;

/// What PyTorch made of one cell.
#[derive(Deserialize)]
struct Reference {
    weights: Arrays,
    tokens: Vec<Vec<i32>>,
    logits: Vec<f32>,
    loss: f32,
    gradients: Arrays,
}

/// Every float parameter's gradient by path.
struct Slopes<'a> {
    path: Vec<String>,
    grads: &'a Gradients,
    found: Arrays,
}

impl ModuleVisitor for Slopes<'_> {
    fn enter_module(&mut self, name: &str, _container: &str) {
        self.path.push(name.to_string());
    }

    fn exit_module(&mut self, _name: &str, _container: &str) {
        self.path.pop();
    }

    fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<D>>) {
        let slope = param.val().grad(self.grads).expect("every weight learns");
        self.found
            .insert(self.path.join("."), slope.into_data().try_to_vec().unwrap());
    }
}

fn slopes<M: Module>(model: &M, grads: &Gradients) -> Arrays {
    let mut slopes = Slopes {
        path: Vec::new(),
        grads,
        found: Arrays::new(),
    };
    model.visit(&mut slopes);
    slopes.found
}

fn ids(rows: &[Vec<i32>], from: usize, device: &Device) -> Tensor<2, Int> {
    let width = rows[0].len() - 1;
    let values: Vec<i32> = rows
        .iter()
        .flat_map(|row| row[from..][..width].to_vec())
        .collect();
    Tensor::from_data(TensorData::new(values, [rows.len(), width]), device)
}

fn assert_close(name: &str, got: &[f32], expected: &[f32], tolerance: f32) {
    assert_eq!(got.len(), expected.len(), "{name}");
    for (got, expected) in got.iter().zip(expected) {
        assert!(
            (got - expected).abs() < tolerance,
            "{name}: {got} {expected}"
        );
    }
}

/// The model with the weights of `arrays`, each in the shape it has.
fn with_weights<M: Module>(model: M, arrays: &Arrays) -> M {
    let mut tensors = store::tensors(&model);
    for (name, tensor) in &mut tensors {
        *tensor = TensorData::new(arrays[name].clone(), tensor.shape().clone());
    }
    assert_eq!(tensors.len(), arrays.len());
    store::assign(model, tensors, Path::new("fixture")).unwrap()
}

#[test]
fn cells_are_pytorchs() {
    let fixture = concat!(env!("CARGO_MANIFEST_DIR"), "/fixtures/recurrent.json");
    let bytes = std::fs::read(fixture).unwrap();
    let all: BTreeMap<String, Reference> = serde_json::from_slice(&bytes).unwrap();
    let device = Device::flex().autodiff();
    for (name, cell) in [("rnn", Cell::Rnn), ("lstm", Cell::Lstm), ("gru", Cell::Gru)] {
        let reference = &all[name];
        let config = RecurrentConfig {
            vocab_size: 7,
            d_model: 4,
            cell,
            ..RecurrentConfig::default()
        };
        let model = config.init(&device, &mut rng(0, Stream::Init, 0));
        let model = with_weights(model, &reference.weights);
        let inputs = ids(&reference.tokens, 0, &device);
        let logits = model.forward(inputs.clone());
        let got: Vec<f32> = logits.clone().into_data().try_to_vec().unwrap();
        assert_close(name, &got, &reference.logits, 1e-5);
        let loss = LanguageLoss::of(logits, ids(&reference.tokens, 1, &device)).total;
        let value = loss.clone().into_scalar::<f32>();
        assert_close(name, &[value], &[reference.loss], 1e-5);
        let got = slopes(&model, &loss.backward());
        for (path, expected) in &reference.gradients {
            assert_close(path, &got[path], expected, 1e-5);
        }
    }
}

fn recurrent(cell: Cell) -> RecurrentConfig {
    RecurrentConfig {
        vocab_size: 5,
        seq_len: 6,
        d_model: 6,
        cell,
        tied_head: false,
        ..RecurrentConfig::default()
    }
}

fn convolution() -> CausalConvConfig {
    CausalConvConfig {
        vocab_size: 5,
        seq_len: 6,
        d_model: 6,
        n_layers: 3,
        kernel: 2,
        max_dilation: 2,
        // Weights large enough for differences to show.
        init: InitScheme::He,
        ..CausalConvConfig::default()
    }
}

const TEXT: [i32; 9] = [3, 1, 4, 1, 0, 2, 2, 4, 3];

/// Every weight's slope against the difference of two losses.
fn slopes_are_differences<C: LanguageConfig>(config: &C) {
    const STEP: f32 = 1e-2;
    let device = Device::flex().autodiff();
    let model = config.init(&device, &mut rng(1, Stream::Init, 0));
    // Embeddings as large as the step is small: what follows a norm of tiny ones is no straight line.
    let mut tensors = store::tensors(&model);
    let embedding = tensors["tokens.weight"].clone();
    let larger: Vec<f32> = embedding.iter::<f32>().map(|x| 10.0 * x).collect();
    let larger = TensorData::new(larger, embedding.shape().clone());
    tensors.insert("tokens.weight".into(), larger);
    let model = store::assign(model, tensors, Path::new("larger")).unwrap();
    let rows = [TEXT[..7].to_vec(), TEXT[2..].to_vec()];
    let loss = |model: &C::Model, device: &Device| {
        let (inputs, targets) = (ids(&rows, 0, device), ids(&rows, 1, device));
        model.training_loss(inputs, targets).total
    };
    let found = slopes(&model, &loss(&model, &device).backward());
    let plain = model.valid();
    for (name, slopes) in found {
        for (index, slope) in slopes.iter().enumerate().step_by(5) {
            let at = |by: f32| {
                let mut tensors = store::tensors(&plain);
                let mut values: Vec<f32> = tensors[&name].iter().collect();
                values[index] += by;
                let moved = TensorData::new(values, tensors[&name].shape().clone());
                tensors.insert(name.clone(), moved);
                let model = store::assign(plain.clone(), tensors, Path::new("moved")).unwrap();
                loss(&model, &Device::flex()).into_scalar::<f32>()
            };
            let difference = (at(STEP) - at(-STEP)) / (2.0 * STEP);
            let tolerance = 1e-3 * (1.0 + slope.abs());
            assert!(
                (difference - slope).abs() < tolerance,
                "{name}: {difference} {slope}"
            );
        }
    }
}

#[test]
fn gradients_are_finite_differences() {
    for cell in [Cell::Rnn, Cell::Lstm, Cell::Gru] {
        slopes_are_differences(&recurrent(cell));
    }
    // Weights so large that differences show in a forward pass make it too crooked for this.
    slopes_are_differences(&CausalConvConfig {
        init: InitScheme::FanIn,
        ..convolution()
    });
}

/// Reading piece by piece gives the logits of the whole, and no position sees a later one.
fn memory_is_enough<C: LanguageConfig>(config: &C) {
    let model = config.init(&Device::flex(), &mut rng(1, Stream::Init, 0));
    let read = |tokens: &[i32]| {
        let data = TensorData::new(tokens.to_vec(), [1, tokens.len()]);
        Tensor::<2, Int>::from_data(data, &Device::flex())
    };
    let far = |a: Tensor<3>, b: Tensor<3>| (a - b).abs().max().into_scalar::<f32>();
    let whole = model.forward(read(&TEXT));
    let mut memory = Default::default();
    let mut parts = vec![
        model.forward_after(read(&TEXT[..3]), &mut memory),
        model.forward_after(read(&TEXT[3..5]), &mut memory),
    ];
    for token in &TEXT[5..] {
        parts.push(model.forward_after(read(&[*token]), &mut memory));
    }
    assert!(far(whole.clone(), Tensor::cat(parts, 1)) < 1e-5);
    // Two texts in one batch change places, and each is read on.
    let mut memory = Default::default();
    let last = |x: Tensor<3>, row| x.narrow(0, row, 1);
    model.forward_after(
        read(&[TEXT, TEXT.map(|id| 4 - id)].concat()).reshape([2, 9]),
        &mut memory,
    );
    C::Model::select(&mut memory, Tensor::from_data([1, 0], &Device::flex()));
    let both = model.forward_after(read(&[2, 2]).reshape([2, 1]), &mut memory);
    let alone = model
        .forward(read(&[&TEXT[..], &[2]].concat()))
        .narrow(1, 9, 1);
    assert!(far(last(both.clone(), 1), alone.clone()) < 1e-5);
    assert!(far(last(both, 0), alone) > 1e-3);
    let mut other = TEXT;
    other[4] = 4;
    let other = model.forward(read(&other));
    let part = |x: &Tensor<3>, from, n| x.clone().narrow(1, from, n);
    assert_eq!(
        part(&whole, 0, 4).into_data(),
        part(&other, 0, 4).into_data()
    );
    assert!(far(part(&whole, 4, 1), part(&other, 4, 1)) > 1e-3);
}

#[test]
fn memory_is_all_that_reading_on_needs() {
    for cell in [Cell::Rnn, Cell::Lstm, Cell::Gru] {
        memory_is_enough(&recurrent(cell));
    }
    memory_is_enough(&convolution());
}

/// The loss of packed texts is the mean of each one's own, weighted by length.
fn packing_keeps_texts_apart<C: LanguageConfig>(config: &C) {
    let device = Device::flex();
    let model = config.init(&device, &mut rng(1, Stream::Init, 0));
    let row = |at: usize, n: usize| {
        let row = [TEXT[at..=at + n].to_vec()];
        (ids(&row, 0, &device), ids(&row, 1, &device))
    };
    let (inputs, targets) = row(0, 8);
    let packed = model.packed_loss(inputs, targets, &[3, 5]).total;
    let alone = |(inputs, targets)| model.training_loss(inputs, targets).total;
    let apart = (alone(row(0, 3)) * 3.0 + alone(row(3, 5)) * 5.0) / 8.0;
    assert!((packed.clone() - apart).abs().into_scalar::<f32>() < 1e-5);
    let together = alone(row(0, 8));
    assert!((packed - together).abs().into_scalar::<f32>() > 1e-4);
}

#[test]
fn packed_texts_do_not_look_into_each_other() {
    for cell in [Cell::Rnn, Cell::Lstm, Cell::Gru] {
        packing_keeps_texts_apart(&recurrent(cell));
    }
    packing_keeps_texts_apart(&convolution());
}

#[test]
fn a_convolution_sees_its_receptive_field_and_no_more() {
    let config = convolution();
    assert_eq!(config.receptive_field(), 1 + 1 + 2 + 1);
    let model = config.init(&Device::flex(), &mut rng(1, Stream::Init, 0));
    let last = |first: i32, length: usize| {
        let mut tokens = TEXT[..length].to_vec();
        tokens[0] = first;
        let data = TensorData::new(tokens, [1, length]);
        let tokens = Tensor::<2, Int>::from_data(data, &Device::flex());
        model.forward(tokens).narrow(1, length - 1, 1).into_data()
    };
    assert_ne!(last(0, 5), last(1, 5));
    assert_eq!(last(0, 6), last(1, 6));
}

#[test]
fn folders_hold_their_models() {
    let dir = tempfile::tempdir().unwrap();
    let config = recurrent(Cell::Gru);
    let model = config.init(&Device::flex(), &mut rng(1, Stream::Init, 0));
    config.save(&model, dir.path()).unwrap();
    let (again, loaded) = RecurrentConfig::load(dir.path(), &Device::flex()).unwrap();
    assert_eq!(again, config);
    assert_eq!(store::tensors(&loaded), store::tensors(&model));
    let other = CausalConvConfig::load(dir.path(), &Device::flex()).map(|_| ());
    let message = other.unwrap_err().to_string();
    assert!(
        message.contains("architecture recurrent is not supported"),
        "{message}"
    );
    std::fs::write(dir.path().join("config.json"), "{}").unwrap();
    let lost = RecurrentConfig::load(dir.path(), &Device::flex()).map(|_| ());
    assert!(matches!(lost, Err(ModelError::Json { .. })));
}

#[test]
fn contradictions_name_their_key() {
    let config = CausalConvConfig {
        max_dilation: 3,
        ..convolution()
    };
    let message = config.validate().unwrap_err().to_string();
    assert!(
        message.starts_with("max_dilation: must be a power of two"),
        "{message}"
    );
    let config = RecurrentConfig {
        n_layers: 0,
        ..recurrent(Cell::Rnn)
    };
    assert_eq!(
        config.validate().unwrap_err().to_string(),
        "n_layers: must be at least 1"
    );
}
