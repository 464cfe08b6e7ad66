//! Long short-term memory (Hochreiter & Schmidhuber 1997, with the forget gate of Gers et al. 2000).

use burn::{
    module::Module,
    tensor::{
        Device, Tensor,
        activation::{sigmoid, tanh},
    },
};
use maquette_kernels::lstm;

use crate::linear::{Linear, LinearConfig};

/// Configuration of an [`Lstm`].
#[derive(Debug, Clone, Copy)]
pub struct LstmConfig {
    /// Features of the input.
    pub d_input: usize,
    /// Features of the state and the output.
    pub d_hidden: usize,
}

impl LstmConfig {
    /// One layer; draw its weights with [`crate::init::initialise`].
    pub fn init(&self, device: &Device) -> Lstm {
        let gates = 4 * self.d_hidden;
        Lstm {
            input: LinearConfig::new(self.d_input, gates).init(device),
            hidden: LinearConfig::new(self.d_hidden, gates)
                .with_bias(false)
                .init(device),
        }
    }
}

/// One recurrent layer.
///
/// With `[i, f, g, o] = input(x_t) + hidden(h_{t-1})`:
/// `c_t = sigmoid(f) c_{t-1} + sigmoid(i) tanh(g)`, `h_t = sigmoid(o) tanh(c_t)`.
#[derive(Module, Debug)]
pub struct Lstm {
    /// `[d_input, 4 d_hidden]` and the offsets: input, forget, cell and output gate.
    pub input: Linear,
    /// `[d_hidden, 4 d_hidden]`, the same gates.
    pub hidden: Linear,
}

/// What an [`Lstm`] remembers, each `[batch, d_hidden]`.
#[derive(Debug, Clone)]
pub struct LstmState {
    /// The last output.
    pub hidden: Tensor<2>,
    /// The cell.
    pub cell: Tensor<2>,
}

impl Lstm {
    /// Outputs over a whole sequence that starts from a state of zeros.
    ///
    /// # Shapes
    /// - x: `[batch, seq, d_input]`
    /// - output: `[batch, seq, d_hidden]`
    pub fn forward(&self, x: Tensor<3>) -> Tensor<3> {
        // The inputs of all times in one product; only the recurrence goes step by step.
        lstm(self.input.forward(x), self.hidden.weight.val())
    }

    /// One time step, for generation: the same numbers as [`Lstm::forward`].
    ///
    /// # Shapes
    /// - x: `[batch, d_input]`
    pub fn step(&self, x: Tensor<2>, state: Option<LstmState>) -> LstmState {
        let mut gates = self.input.forward(x);
        if let Some(state) = &state {
            gates = gates + self.hidden.forward(state.hidden.clone());
        }
        let [i, f, g, o]: [Tensor<2>; 4] = {
            let d_hidden = gates.dims()[1] / 4;
            std::array::from_fn(|gate| gates.clone().narrow(1, gate * d_hidden, d_hidden))
        };
        let new = sigmoid(i) * tanh(g);
        let cell = match state {
            Some(state) => sigmoid(f) * state.cell + new,
            None => new,
        };
        LstmState {
            hidden: sigmoid(o) * tanh(cell.clone()),
            cell,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{InitScheme, init::initialise};
    use burn::tensor::TensorData;
    use maquette_rng::{Stream, normal, rng};

    #[test]
    fn one_unit_by_hand() {
        let device = Device::flex();
        let config = LstmConfig {
            d_input: 1,
            d_hidden: 1,
        };
        let mut layer = config.init(&device);
        let row = |values: [f32; 4]| Tensor::<2>::from_floats([values], &device);
        layer.input.weight = layer.input.weight.map(|_| row([0.5, -0.25, 1.0, 2.0]));
        layer.hidden.weight = layer.hidden.weight.map(|_| row([1.0, 0.5, -1.0, 0.25]));
        layer.input.bias = layer.input.bias.map(|b| b.map(|b| b.zeros_like()));
        let x = Tensor::<3>::from_floats([[[1.0], [-2.0]]], &device);
        let got = layer.forward(x).into_data().try_to_vec::<f32>().unwrap();
        let s = |x: f64| 1.0 / (1.0 + (-x).exp());
        let c1 = s(0.5) * 1f64.tanh();
        let h1 = s(2.0) * c1.tanh();
        let c2 = s(0.5 + 0.5 * h1) * c1 + s(-1.0 + h1) * (-2.0 - h1).tanh();
        let h2 = s(-4.0 + 0.25 * h1) * c2.tanh();
        for (got, expected) in got.iter().zip([h1, h2]) {
            assert!(
                (f64::from(*got) - expected).abs() < 1e-6,
                "{got} {expected}"
            );
        }
    }

    #[test]
    fn steps_equal_the_whole_sequence() {
        let device = Device::flex();
        let config = LstmConfig {
            d_input: 3,
            d_hidden: 5,
        };
        let mut rng = rng(0, Stream::Init, 0);
        let layer = initialise(config.init(&device), &mut rng, |slot| {
            InitScheme::He.fill(slot)
        });
        let x = TensorData::new(normal(&mut rng, 2 * 4 * 3), [2, 4, 3]);
        let x = Tensor::<3>::from_data(x, &device);
        let whole = layer.forward(x.clone());
        let mut state = None;
        for t in 0..4 {
            let x = x.clone().narrow(1, t, 1).squeeze_dim::<2>(1);
            let next = layer.step(x, state);
            let expected = whole.clone().narrow(1, t, 1).squeeze_dim::<2>(1);
            let difference = (next.hidden.clone() - expected).abs().max();
            assert!(difference.into_scalar::<f32>() < 1e-5);
            state = Some(next);
        }
    }
}
