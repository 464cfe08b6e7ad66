//! The recurrence of a long short-term memory over a whole sequence.

use burn::tensor::Tensor;
use burn::tensor::activation::{sigmoid, tanh};

/// Outputs of a recurrent layer that starts from zeros (Hochreiter & Schmidhuber 1997; gates in
/// the order input, forget, cell, output, as PyTorch has them).
///
/// With `[i, f, g, o] = x_t + h_{t-1} weight`:
/// `c_t = sigmoid(f) c_{t-1} + sigmoid(i) tanh(g)`, `h_t = sigmoid(o) tanh(c_t)`.
///
/// # Shapes
/// - x: `[batch, seq, 4 d_hidden]`, the gates' inputs with their offsets
/// - weight: `[d_hidden, 4 d_hidden]`
/// - output: `[batch, seq, d_hidden]`
pub fn lstm(x: Tensor<3>, weight: Tensor<2>) -> Tensor<3> {
    let [batch, seq, width] = x.dims();
    let d_hidden = width / 4;
    let mut state: Option<(Tensor<2>, Tensor<2>)> = None;
    let mut outputs = Vec::with_capacity(seq);
    for t in 0..seq {
        let mut gates = x.clone().narrow(1, t, 1).reshape([batch, width]);
        if let Some((hidden, _)) = &state {
            gates = gates + hidden.clone().matmul(weight.clone());
        }
        let gate = |index: usize| gates.clone().narrow(1, index * d_hidden, d_hidden);
        let mut cell = sigmoid(gate(0)) * tanh(gate(2));
        if let Some((_, before)) = state {
            cell = sigmoid(gate(1)) * before + cell;
        }
        let hidden = sigmoid(gate(3)) * tanh(cell.clone());
        outputs.push(hidden.clone().unsqueeze_dim::<3>(1));
        state = Some((hidden, cell));
    }
    Tensor::cat(outputs, 1)
}
