//! From an [`OptimizerSpec`] to Burn's optimiser, with its parameter groups.
//!
//! Burn keeps the state of each parameter and saves it; the rules themselves (`rules`) are our
//! one-pass kernels. Muon is Burn's own.

use burn::module::{Module, ParamGroup};
use burn::optim::decay::WeightDecayConfig;
use burn::optim::momentum::MomentumConfig;
use burn::optim::{AdjustLrFn, ModuleOptimizer, MuonConfig, Optimizer};

use crate::parameters::{Parameter, parameters};
use rules::{Adam, RmsProp, Sgd};

mod rules;

use crate::spec::{DecayOn, OptimizerKind, OptimizerSpec};

/// The optimiser of `spec` for `model`.
///
/// Weight decay goes to the parameters that `spec.decay` selects. Muon goes to hidden matrices
/// only, with the step size rule of Liu et al. (2025, "Muon is scalable for LLM training"), so
/// that one learning rate serves it and the AdamW of all other parameters.
pub fn build<M: Module>(spec: &OptimizerSpec, model: &M) -> ModuleOptimizer {
    let all = parameters(model);
    match spec.kind {
        OptimizerKind::AdamW => grouped(spec, &all, |decay| adam(spec, decay, true)),
        OptimizerKind::Adam => grouped(spec, &all, |decay| adam(spec, decay, false)),
        OptimizerKind::Sgd => grouped(spec, &all, |decay| Sgd {
            momentum: spec.momentum.unwrap_or(0.0).into(),
            nesterov: spec.nesterov.unwrap_or(false),
            weight_decay: decay.into(),
        }),
        OptimizerKind::RmsProp => grouped(spec, &all, |decay| RmsProp {
            alpha: spec.alpha.unwrap_or(0.99).into(),
            eps: eps(spec),
            momentum: spec.momentum.unwrap_or(0.0).into(),
            weight_decay: decay.into(),
        }),
        OptimizerKind::Muon => muon(spec, &all),
    }
}

/// One rule without decay for all, the same with decay for the decaying group.
fn grouped<O: Optimizer>(
    spec: &OptimizerSpec,
    all: &[Parameter],
    rule: impl Fn(f32) -> O,
) -> ModuleOptimizer {
    let plain = ModuleOptimizer::from(rule(0.0));
    let decaying = paths(all, |parameter| decays(spec.decay, parameter));
    match spec.weight_decay == 0.0 || decaying.is_empty() {
        true => plain,
        false => plain.with_group(
            ParamGroup::from_paths(decaying),
            rule(spec.weight_decay),
            None,
        ),
    }
}

fn muon(spec: &OptimizerSpec, all: &[Parameter]) -> ModuleOptimizer {
    let rule = |decay| {
        MuonConfig::new()
            .with_momentum(MomentumConfig {
                momentum: spec.momentum.unwrap_or(0.95).into(),
                dampening: 0.0,
                nesterov: spec.nesterov.unwrap_or(true),
            })
            .with_adjust_lr_fn(AdjustLrFn::MatchRmsAdamW)
            .with_weight_decay(decayed(decay))
            .build()
    };
    let rest = grouped(spec, all, |decay| adam(spec, decay, true));
    // Every choice of `decay` includes the hidden matrices.
    match paths(all, Parameter::is_hidden_matrix) {
        hidden if hidden.is_empty() => rest,
        hidden => rest.with_group(
            ParamGroup::from_paths(hidden),
            rule(spec.weight_decay),
            None,
        ),
    }
}

fn adam(spec: &OptimizerSpec, weight_decay: f32, decoupled: bool) -> Adam {
    Adam {
        betas: spec.betas.unwrap_or([0.9, 0.999]).map(f64::from),
        eps: eps(spec),
        weight_decay: weight_decay.into(),
        decoupled,
    }
}

fn eps(spec: &OptimizerSpec) -> f64 {
    spec.eps.unwrap_or(1e-8).into()
}

fn decayed(penalty: f32) -> Option<WeightDecayConfig> {
    (penalty != 0.0).then(|| WeightDecayConfig::new(penalty))
}

fn decays(on: DecayOn, parameter: &Parameter) -> bool {
    match on {
        DecayOn::All => true,
        DecayOn::Matrices => parameter.shape.len() >= 2,
        // Convolution kernels are hidden too; only two-dimensional edges are left out.
        DecayOn::HiddenMatrices => parameter.shape.len() > 2 || parameter.is_hidden_matrix(),
    }
}

fn paths(all: &[Parameter], select: impl Fn(&Parameter) -> bool) -> Vec<String> {
    all.iter()
        .filter(|parameter| select(parameter))
        .map(|parameter| parameter.path.clone())
        .collect()
}

#[cfg(test)]
mod tests {
    use burn::nn::{Embedding, EmbeddingConfig, Linear, LinearConfig};
    use burn::optim::GradientsParams;
    use burn::tensor::{Device, Tensor};

    use super::*;

    #[derive(Module, Debug)]
    struct Net {
        embedding: Embedding,
        hidden: Linear,
    }

    fn net() -> Net {
        let device = Device::flex().autodiff();
        Net {
            embedding: EmbeddingConfig::new(3, 4).init(&device),
            hidden: LinearConfig::new(4, 4).init(&device),
        }
    }

    /// One step with zero gradients: what moves is what decays.
    fn moved(spec: &OptimizerSpec) -> [bool; 3] {
        let net = net();
        let mut grads = GradientsParams::new();
        let device = Device::flex();
        grads.register(net.embedding.weight.id, Tensor::<2>::zeros([3, 4], &device));
        grads.register(net.hidden.weight.id, Tensor::<2>::zeros([4, 4], &device));
        let bias = net.hidden.bias.clone().unwrap();
        grads.register(bias.id, Tensor::<1>::zeros([4], &device));
        let mut filled = net.clone();
        filled.hidden.bias = Some(bias.map(|b| Tensor::ones_like(&b).require_grad()));
        let after = build(spec, &filled).step(0.1, filled.clone(), grads);
        let differs = |a: Vec<f32>, b: Vec<f32>| a != b;
        let floats2 = |t: Tensor<2>| t.try_into_vec_as::<f32>().unwrap();
        let floats1 = |t: Tensor<1>| t.try_into_vec_as::<f32>().unwrap();
        [
            differs(
                floats2(after.embedding.weight.val()),
                floats2(filled.embedding.weight.val()),
            ),
            differs(
                floats2(after.hidden.weight.val()),
                floats2(filled.hidden.weight.val()),
            ),
            differs(
                floats1(after.hidden.bias.unwrap().val()),
                floats1(filled.hidden.bias.unwrap().val()),
            ),
        ]
    }

    #[test]
    fn weight_decay_reaches_the_chosen_parameters_only() {
        use OptimizerKind::{Adam, AdamW, Muon, RmsProp, Sgd};
        for kind in [AdamW, Adam, Sgd, RmsProp, Muon] {
            let spec = |decay, weight_decay| OptimizerSpec {
                weight_decay,
                decay,
                ..OptimizerSpec::new(kind, 0.1)
            };
            assert_eq!(moved(&spec(DecayOn::All, 0.0)), [false; 3], "{kind:?}");
            assert_eq!(moved(&spec(DecayOn::All, 0.1)), [true; 3], "{kind:?}");
            assert_eq!(
                moved(&spec(DecayOn::Matrices, 0.1)),
                [true, true, false],
                "{kind:?}"
            );
            assert_eq!(
                moved(&spec(DecayOn::HiddenMatrices, 0.1)),
                [false, true, false],
                "{kind:?}"
            );
        }
    }

    #[test]
    fn adamw_takes_the_steps_of_pytorch() {
        // import torch
        // w = torch.nn.Parameter(torch.tensor([[1.0, -2.0], [3.0, 0.5]]))
        // o = torch.optim.AdamW([w], lr=0.1, betas=(0.9, 0.99), eps=1e-8, weight_decay=0.1)
        // for _ in range(3): o.zero_grad(); (w ** 2).sum().backward(); o.step()
        // print(w.tolist())
        let device = Device::flex().autodiff();
        let mut net = LinearConfig::new(2, 2).with_bias(false).init(&device);
        let start = Tensor::<2>::from_floats([[1.0, -2.0], [3.0, 0.5]], &device);
        net.weight = net.weight.map(|_| start.require_grad());
        let spec = OptimizerSpec {
            betas: Some([0.9, 0.99]),
            weight_decay: 0.1,
            ..OptimizerSpec::adamw(0.1)
        };
        let mut optimizer = build(&spec, &net);
        for _ in 0..3 {
            let loss = net.weight.val().square().sum();
            let grads = GradientsParams::from_grads(loss.backward(), &net);
            net = optimizer.step(0.1, net, grads);
        }
        let got = net.weight.val().try_into_vec_as::<f32>().unwrap();
        for (got, expected) in got.iter().zip(ADAMW) {
            assert!((got - expected).abs() < 1e-5, "{got} is not {expected}");
        }
    }

    const ADAMW: [f32; 4] = [0.675003, -1.644317, 2.614369, 0.19322];
}
