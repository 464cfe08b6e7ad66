//! From an [`OptimizerSpec`] to Burn's optimiser, with its parameter groups.

use burn::module::{Module, ParamGroup};
use burn::optim::decay::WeightDecayConfig;
use burn::optim::momentum::MomentumConfig;
use burn::optim::{
    AdamConfig, AdamW, AdamWConfig, AdjustLrFn, ModuleOptimizer, MuonConfig, Optimizer,
    RmsPropConfig, SgdConfig,
};

use crate::parameters::{Parameter, parameters};
use crate::spec::{DecayOn, OptimizerKind, OptimizerSpec};

/// The optimiser of `spec` for `model`.
///
/// Weight decay goes to the parameters that `spec.decay` selects. Muon goes to hidden matrices
/// only, with the step size rule of Liu et al. (2025, "Muon is scalable for LLM training"), so
/// that one learning rate serves it and the AdamW of all other parameters.
pub fn build<M: Module>(spec: &OptimizerSpec, model: &M) -> ModuleOptimizer {
    let all = parameters(model);
    match spec.kind {
        OptimizerKind::AdamW => grouped(spec, &all, |decay| adamw(spec, decay)),
        OptimizerKind::Adam => grouped(spec, &all, |decay| {
            adam(spec).with_weight_decay(decayed(decay)).build()
        }),
        OptimizerKind::Sgd => grouped(spec, &all, |decay| {
            sgd(spec).with_weight_decay(decayed(decay)).build()
        }),
        OptimizerKind::RmsProp => grouped(spec, &all, |decay| {
            rmsprop(spec).with_weight_decay(decayed(decay)).build()
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
    let rest = grouped(spec, all, |decay| adamw(spec, decay));
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

fn adamw(spec: &OptimizerSpec, decay: f32) -> AdamW {
    let [beta_1, beta_2] = betas(spec);
    AdamWConfig::new()
        .with_beta_1(beta_1)
        .with_beta_2(beta_2)
        .with_epsilon(eps(spec))
        .with_weight_decay(decay)
        .build()
}

fn adam(spec: &OptimizerSpec) -> AdamConfig {
    let [beta_1, beta_2] = betas(spec);
    AdamConfig::new()
        .with_beta_1(beta_1)
        .with_beta_2(beta_2)
        .with_epsilon(eps(spec))
}

fn sgd(spec: &OptimizerSpec) -> SgdConfig {
    let momentum = spec
        .momentum
        .filter(|momentum| *momentum > 0.0)
        .map(|momentum| MomentumConfig {
            momentum: momentum.into(),
            dampening: 0.0,
            nesterov: spec.nesterov.unwrap_or(false),
        });
    SgdConfig::new().with_momentum(momentum)
}

fn rmsprop(spec: &OptimizerSpec) -> RmsPropConfig {
    RmsPropConfig::new()
        .with_alpha(spec.alpha.unwrap_or(0.99))
        .with_momentum(spec.momentum.unwrap_or(0.0))
        .with_epsilon(eps(spec))
}

fn betas(spec: &OptimizerSpec) -> [f32; 2] {
    spec.betas.unwrap_or([0.9, 0.999])
}

fn eps(spec: &OptimizerSpec) -> f32 {
    spec.eps.unwrap_or(1e-8)
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
